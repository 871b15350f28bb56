/* A loaded program with one function for each way to place a jump. Each returns x + 1, its next version x + 1000. A hot
 * thread and one that sleeps now and then call them all in turn and count old, new and wrong answers, and how often the
 * version changed from one call to the next. Commands on standard input: report, quit. Compile with -fcf-protection=full. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Walls are longer than a short jump and have no padding. The first instruction of most functions spoils an argument
 * register, so nothing behind it can be a site. */
__asm__(".intel_syntax noprefix\n"
	".macro begin name\n .globl \\name\n .type \\name, @function\n\\name:\n .cfi_startproc\n.endm\n"
	".macro finish name\n .cfi_endproc\n .size \\name, .-\\name\n.endm\n"
	".macro wall name, rounds\n begin \\name\n .rept \\rounds\n mov eax, 1\n .endr\n ret\n finish \\name\n.endm\n"
	".text\n"
	"wall wall_1, 40\n"

	/* both reach the same hole, which has room for one */
	"begin rival\n mov ecx, edi\n movsxd rax, ecx\n inc rax\n ret\n finish rival\n"
	"begin short_to_hole\n mov ecx, edi\n movsxd rax, ecx\n inc rax\n ret\n finish short_to_hole\n .skip 8, 0x90\n"

	"wall wall_2, 40\n"
	"begin short_by_chain\n mov ecx, edi\n movsxd rax, ecx\n inc rax\n ret\n finish short_by_chain\n .skip 2, 0x90\n"
	"wall wall_3, 24\n .skip 8, 0x90\n"

	"wall wall_4, 40\n"
	"begin punned\n mov rcx, rdi\n lea rax, [rcx+1]\n ret\n finish punned\n"
	"wall wall_5, 40\n"

	/* the only instruction before a call that is longer than a byte is the call */
	"begin bump\n lea rax, [rdi+1]\n ret\n finish bump\n .skip 3, 0x90\n"
	"begin first_a_call\n push rbx\n .cfi_adjust_cfa_offset 8\n call bump\n pop rbx\n .cfi_adjust_cfa_offset -8\n ret\n"
	"finish first_a_call\n .skip 3, 0x90\n"

	"begin behind_saved\n push rbx\n .cfi_adjust_cfa_offset 8\n mov rbx, rdi\n push r12\n .cfi_adjust_cfa_offset 8\n"
	" mov r12d, 1\n lea rax, [rbx+r12]\n pop r12\n .cfi_adjust_cfa_offset -8\n pop rbx\n"
	" .cfi_adjust_cfa_offset -8\n ret\nfinish behind_saved\n .skip 3, 0x90\n"

	/* js with a distance of four bytes: the flags of the instruction before are in use at the site */
	"begin flags_in_use\n xor eax, eax\n test rdi, rdi\n .byte 0x0f, 0x88\n .long 1f-.-4\n"
	" lea rax, [rdi+1]\n ret\n1: mov rax, rdi\n add rax, 1\n ret\nfinish flags_in_use\n .skip 3, 0x90\n"

	/* rsi is 0 at the call; each branch back brings the carry flag and a count in the red zone */
	"begin loops_to_entry\n mov r8d, 40\n mov ecx, esi\n jrcxz 1f\n adc qword ptr [rsp-8], 0\n jmp 2f\n"
	"1: mov qword ptr [rsp-8], 0\n2: lea esi, [rsi+1]\n cmp esi, r8d\n jb loops_to_entry\n"
	" mov rax, [rsp-8]\n lea rax, [rax+rdi-38]\n ret\nfinish loops_to_entry\n .skip 3, 0x90\n"

	"begin loops_through_hole\n mov ecx, esi\n jrcxz 1f\n adc qword ptr [rsp-8], 0\n jmp 2f\n"
	"1: mov qword ptr [rsp-8], 0\n2: lea esi, [rsi+1]\n cmp esi, 40\n jb loops_through_hole\n"
	" mov rax, [rsp-8]\n lea rax, [rax+rdi-38]\n ret\nfinish loops_through_hole\n .skip 8, 0x90\n"

	/* returns what is in rax: 0, for it is called as a variadic function without floating point */
	"begin one_byte\n ret\n finish one_byte\n .skip 8, 0x90\n"
	"wall wall_0, 1\n"

	/* three bytes on one page, two on the next; once with a hole in reach, once without */
	".p2align 12\n begin wall_6\n .rept 818\n mov eax, 1\n .endr\n .skip 2, 0x90\n ret\n finish wall_6\n"
	"begin crosses_page\n mov ecx, 1\n lea rax, [rdi+rcx]\n ret\n finish crosses_page\n .skip 8, 0x90\nwall wall_10, 1\n"
	".p2align 12\n begin wall_7\n .rept 818\n mov eax, 1\n .endr\n .skip 2, 0x90\n ret\n finish wall_7\n"
	"begin crosses_page_alone\n mov ecx, 1\n lea rax, [rdi+rcx]\n ret\n finish crosses_page_alone\n"
	"wall wall_8, 40\n"
	/* one byte on one page, the rest on the next */
	".p2align 12\n begin wall_9\n .rept 818\n mov eax, 1\n .endr\n .skip 4, 0x90\n ret\n finish wall_9\n"
	"begin last_byte_of_page\n mov eax, 1\n add rax, rdi\n ret\n finish last_byte_of_page\n .skip 8, 0x90\n"
	"wall wall_11, 1\n"
	".att_syntax\n");

typedef long function(long, ...);
extern function short_to_hole, short_by_chain, punned, first_a_call, behind_saved, flags_in_use, loops_to_entry,
    loops_through_hole, one_byte, crosses_page, crosses_page_alone, last_byte_of_page;

__attribute__((noinline)) long landing_pad(long x)
{
	return x + 1;
}

__attribute__((noinline, patchable_function_entry(5))) long nops_at_entry(long x)
{
	return x + 1;
}

__attribute__((noinline, patchable_function_entry(16, 14))) long nops_around_entry(long x)
{
	return x + 1;
}

static function *volatile functions[] = {
    short_to_hole,	short_by_chain,		  punned,		      first_a_call,	 behind_saved,
    flags_in_use,	loops_to_entry,		  crosses_page,		      crosses_page_alone, last_byte_of_page,
    loops_through_hole,
    (function *)landing_pad, (function *)nops_at_entry, (function *)nops_around_entry, one_byte,
};
enum { COUNT = sizeof functions / sizeof functions[0], THREADS = 2 };

static struct thread {
	pthread_t id;
	atomic_ulong old, new, changes;
	int version;
} threads[THREADS];
static atomic_int stop;
static atomic_ulong wrong[COUNT];

static void *work(void *arg)
{
	struct thread *t = arg;
	for (long x = -50; !stop; x = x == 50 ? -50 : x + 1) {
		if (t != threads)
			usleep(100);
		for (int i = 0; i < COUNT; i++) {
			long got = functions[i](x, 0L) - (functions[i] == one_byte ? -1 : x);
			int version = got == 1 ? 1 : got == 1000 ? 2 : 0;
			if (!version)
				wrong[i]++;
			else if (version == 1)
				t->old++;
			else
				t->new++;
			if (t->version && version != t->version)
				t->changes++;
			t->version = version;
		}
	}
	return NULL;
}

static void report(void)
{
	unsigned long old = 0, new = 0, bad = 0, changes = 0;
	for (int i = 0; i < THREADS; i++) {
		old += atomic_exchange(&threads[i].old, 0), new += atomic_exchange(&threads[i].new, 0);
		if (threads[i].changes > changes)
			changes = threads[i].changes;
	}
	for (int i = 0; i < COUNT; i++)
		bad += wrong[i];
	printf("{\"old\": %lu, \"new\": %lu, \"wrong\": %lu, \"changes\": %lu}\n", old, new, bad, changes);
}

int main(void)
{
	for (int i = 0; i < THREADS; i++)
		pthread_create(&threads[i].id, NULL, work, &threads[i]);
	printf("ready\n");
	fflush(stdout);
	char line[64];
	while (fgets(line, sizeof line, stdin) && strncmp(line, "quit", 4)) {
		report();
		fflush(stdout);
	}
	stop = 1;
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i].id, NULL);
	report();
	return 0;
}
