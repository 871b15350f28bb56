# SPDX-License-Identifier: GPL-2.0-only
# The block: slots, carrier routine, helper routine. Written once into unused bytes after a text segment (block.py).
# Position independent. The carrier routine writes no memory and needs no stack: every saved register is a load from
# the slots, and the flags come back by popfq with rsp pointing into the slots while all signals are blocked.
# Assembled by `make asm` into block.bin; a test compares the two.

	.set MAILBOX_SIZE, 4096

	.macro FINISH rax, rip
	lea slot_flags(%rip),%rsp
	popfq
	mov slot_rsp(%rip),%rsp
	mov $14,%eax			# rt_sigprocmask(SIG_SETMASK, the program's mask); mov and lea keep the flags
	mov $2,%edi
	lea slot_mask(%rip),%rsi
	mov $0,%edx
	mov $8,%r10d
	syscall
	mov slot_rdi(%rip),%rdi
	mov slot_rsi(%rip),%rsi
	mov slot_rdx(%rip),%rdx
	mov slot_r8(%rip),%r8
	mov slot_r10(%rip),%r10
	mov slot_r11(%rip),%r11
	mov slot_rcx(%rip),%rcx
	mov \rax,%rax
	jmp *\rip(%rip)
	.endm

	.text
base:
slot_magic:  .ascii "PODGRFT\1"	# 00 the last byte is the version of this layout
slot_rax:    .quad 0		# 08
slot_rcx:    .quad 0		# 10
slot_rdx:    .quad 0		# 18
slot_rsi:    .quad 0		# 20
slot_rdi:    .quad 0		# 28
slot_r8:     .quad 0		# 30
slot_r10:    .quad 0		# 38
slot_r11:    .quad 0		# 40
slot_rsp:    .quad 0		# 48
slot_flags:  .quad 0		# 50
slot_rip:    .quad 0		# 58 where the carrier goes on: at its system call instruction, so that the call is repeated
slot_after:  .quad 0		# 60 where it goes on when a handler ran meanwhile: behind the call, with EINTR
slot_mask:   .quad 0		# 68
slot_ones:   .quad -1		# 70
slot_fsbase: .quad 0		# 78
slot_mode:   .quad 0		# 80 1: look whether a signal handler runs, as the interrupted call would have
slot_mailbox:.quad 0		# 88
slot_idle:   .quad 0,0		# 90 timespec
slot_zero:   .quad 0,0		# a0 timespec
slot_tid:    .quad 0		# b0 the carrier; the slots are not written again before it was seen outside
slot_state:  .quad 0		# b8 address of the state mapping
slot_size:   .quad 0		# c0 its size
slot_check:  .quad 0		# c8 state address xor size xor magic: a torn root is seen
carrier:				# d0
	mov $14,%eax			# rt_sigprocmask(SIG_SETMASK, all)
	mov $2,%edi
	lea slot_ones(%rip),%rsi
	xor %edx,%edx
	mov $8,%r10d
	syscall
	mov $56,%eax			# clone with the flags of pthread_create, no stack of its own, the carrier's TLS
	mov $0x3d0f00,%edi
	xor %esi,%esi
	xor %edx,%edx
	xor %r10d,%r10d
	mov slot_fsbase(%rip),%r8
	syscall
	test %eax,%eax
	jz helper
	cmpl $0,slot_mode(%rip)
	je 1f
	mov $271,%eax			# ppoll(NULL, 0, 0 s, the program's mask): -EINTR exactly when a handler ran
	xor %edi,%edi
	xor %esi,%esi
	lea slot_zero(%rip),%rdx
	lea slot_mask(%rip),%r10
	mov $8,%r8d
	syscall
	cmp $-4,%eax
	jne 1f
	FINISH $-4, slot_after
1:	FINISH slot_rax(%rip), slot_rip

helper:					# all signals blocked, never uses a stack
	xor %esp,%esp
	mov $9,%eax			# mmap(mailbox, RW, SHARED|ANONYMOUS|FIXED_NOREPLACE)
	mov slot_mailbox(%rip),%rdi
	mov $MAILBOX_SIZE,%esi
	mov $3,%edx
	mov $0x100021,%r10d
	mov $-1,%r8
	xor %r9d,%r9d
	syscall
	cmp slot_mailbox(%rip),%rax
	jne leave
	mov %rax,%rbx
	mov $28,%eax			# madvise(DONTFORK): a forked child has no helper and so no mailbox
	mov %rbx,%rdi
	mov $MAILBOX_SIZE,%esi
	mov $10,%edx
	syscall
	mov $186,%eax			# gettid
	syscall
	mov %eax,0x14(%rbx)
	xor %r12d,%r12d			# the last command taken
	mov slot_magic(%rip),%rax
	mov %rax,(%rbx)
next:	mov 8(%rbx),%eax
	cmp %r12d,%eax
	jne command
	mov $202,%eax			# futex(WAIT) with the idle time
	lea 8(%rbx),%rdi
	xor %esi,%esi
	mov %r12d,%edx
	lea slot_idle(%rip),%r10
	syscall
	cmp $-110,%eax
	jne next
	mov %r12d,%eax			# idle: close the mailbox, unless a command has just come
	mov $-1,%ecx
	lock cmpxchg %ecx,8(%rbx)
	jne next
quit:	movl $1,0x10(%rbx)		# closed: no command is taken any more
	mov $11,%eax			# munmap
	mov %rbx,%rdi
	mov $MAILBOX_SIZE,%esi
	syscall
leave:	mov $60,%eax			# exit
	xor %edi,%edi
	syscall
	jmp leave
command:
	cmp $-1,%eax
	je quit
	mov %eax,%r12d
	mov 0x20(%rbx),%rax
	mov 0x28(%rbx),%rdi
	mov 0x30(%rbx),%rsi
	mov 0x38(%rbx),%rdx
	mov 0x40(%rbx),%r10
	mov 0x48(%rbx),%r8
	mov 0x50(%rbx),%r9
	syscall
	mov %rax,0x18(%rbx)
	mov %r12d,0xc(%rbx)		# done
	mov $202,%eax			# futex(WAKE, 1)
	lea 0xc(%rbx),%rdi
	mov $1,%esi
	mov $1,%edx
	syscall
	jmp next
	.end
