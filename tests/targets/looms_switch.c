/* transfer(from, to): what a callee keeps goes onto the stack, and the stack pointer to *from; back from *to. */
__asm__(".globl transfer\n.type transfer, @function\ntransfer:\n"
	"	push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
	"	mov %rsp, (%rdi)\n mov (%rsi), %rsp\n"
	"	pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n"
	".size transfer, .-transfer\n");
