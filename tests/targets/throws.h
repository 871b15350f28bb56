/* What throws.cpp and its patch have in common: types, and the functions that are replaced, by VERSION. */
struct Fault {
	int version;
};

int *alive_of_thread();
extern "C" int raise_fault(int version);

struct Guard {
	int *count = alive_of_thread();
	Guard() { ++*count; }
	~Guard() { --*count; }
};

/* throws out of itself */
extern "C" __attribute__((noipa)) int thrower(int x)
{
	if (x)
		throw Fault{VERSION};
	return VERSION;
}

/* is passed through, and cleans up */
extern "C" __attribute__((noipa)) int middle(int x)
{
	Guard guard;
	return thrower(x);
}

/* catches what code that is not replaced throws */
extern "C" __attribute__((noipa)) int catcher(int x)
{
	try {
		Guard guard;
		return raise_fault(x);
	} catch (const Fault &fault) {
		return VERSION * 16 + fault.version;
	}
}
