/* transfer(from, to): go on where *to was left, as *from is left now; struct context in looms.c. What a callee keeps goes
   onto the stack, or with -DAFTER into *from, with the stack pointer as it is after the return. */
#ifdef AFTER
__asm__(".globl transfer\n.type transfer, @function\ntransfer:\n"
	"	mov (%rsp), %rax\n lea 8(%rsp), %rcx\n mov %rcx, (%rdi)\n mov %rax, 8(%rdi)\n"
	"	mov %rbp, 16(%rdi)\n mov %rbx, 24(%rdi)\n mov %r12, 32(%rdi)\n mov %r13, 40(%rdi)\n"
	"	mov %r14, 48(%rdi)\n mov %r15, 56(%rdi)\n"
	"	mov 16(%rsi), %rbp\n mov 24(%rsi), %rbx\n mov 32(%rsi), %r12\n mov 40(%rsi), %r13\n"
	"	mov 48(%rsi), %r14\n mov 56(%rsi), %r15\n mov (%rsi), %rsp\n jmp *8(%rsi)\n"
	".size transfer, .-transfer\n");
#else
__asm__(".globl transfer\n.type transfer, @function\ntransfer:\n"
	"	push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
	"	mov %rsp, (%rdi)\n mov (%rsi), %rsp\n"
	"	pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n"
	".size transfer, .-transfer\n");
#endif
