# SPDX-License-Identifier: GPL-2.0-only
# The way of the helper into a hook and back into its loop (room.py). It comes here by SETREGS, with a stack and a thread
# pointer of its own, and needs nobody on the way back: an engine that was killed meanwhile reads the result here.
# Assembled by `make asm` into hook.bin; a test compares the two.

	.set CONTROL, 19*4096		# behind this page, a guard, the stack and another guard

	.text
base:
enter:
	lea base+CONTROL(%rip),%rbx
	movq $1,0x08(%rbx)		# entered: it will never be called again
	call *0x20(%rbx)
	cltq
	xor %edx,%edx			# outcome: it has returned
leave:					# the engine sends the helper here with another outcome when the hook must end
	lea base+CONTROL(%rip),%rbx
	mov %rax,0x18(%rbx)
	mov %rdx,0x10(%rbx)
	mov 0x38(%rbx),%rax
	wrfsbase %rax
	mov $14,%eax			# rt_sigprocmask(SIG_SETMASK, all), as the helper had it
	mov $2,%edi
	lea 0x48(%rbx),%rsi
	xor %edx,%edx
	mov $8,%r10d
	syscall
	movq $2,0x08(%rbx)		# finished
	mov 0x30(%rbx),%r12
	mov 0x40(%rbx),%rcx
	mov 0x28(%rbx),%rbx
	xor %esp,%esp
	mov $-4,%rax			# as if a signal had interrupted the futex call that it waited in
	jmp *%rcx
end:
	.end
