/* Install a seccomp filter and become another program.
 *   usage: filtered allow|docker|NUMBER PROGRAM ARG...   NUMBER: this system call kills, all others are allowed */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define LOAD(what) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, what))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define DENY BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
#define KILL BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
#define IF(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)

static int install(struct sock_filter *code, unsigned short length)
{
	struct sock_fprog program = {length, code};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	/* as the container runtimes do: kill other architectures, forbid clone with name space flags and a few calls */
	struct sock_filter docker[] = {
		LOAD(arch), IF(AUDIT_ARCH_X86_64, 1, 0), KILL,
		LOAD(nr), IF(56, 0, 3), LOAD(args[0]), BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0x7E020000), IF(0, 1, 2),
		IF(165, 1, 0), ALLOW, DENY,
	};
	struct sock_filter one[] = {LOAD(nr), IF(atoi(argv[1]), 0, 1), KILL, ALLOW};
	struct sock_filter all[] = {ALLOW};
	int failed;
	if (!strcmp(argv[1], "allow"))
		failed = install(all, 1);
	else if (!strcmp(argv[1], "docker"))
		failed = install(docker, sizeof docker / sizeof *docker);
	else
		failed = install(one, sizeof one / sizeof *one);
	if (failed) {
		perror("seccomp");
		return 1;
	}
	execv(argv[2], argv + 2);
	return 1;
}
