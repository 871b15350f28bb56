# SPDX-License-Identifier: GPL-2.0-only
# A wake-up point: each has a copy of this routine of its own, so nothing has to be passed and no jump is indirect. A
# thread that is on the generation already takes the fast path, which changes no register and no flag. Every other one
# scans its own live stack for words in forbidden code and, where there are none, gives itself the new generation.
# Assembled by `make asm` into wake.bin; a test compares the two. What the engine fills in: `back`, `data`, `check`.
#
# data:       00 minus the generation  08 address of the descriptor  10 log index  1000 log {thread id (bit 31: at a declared point), generation}
# descriptor: 00 generation  08 main stack low  10 main stack high  18 longest stack that is scanned
#             20 first window {low, span}: forbidden code  30 second window {low, span}: these routines
#             40 number of ranges  48 50 return addresses of signal handlers  58 ranges {start, length}, in the first window

	.set LOG, 0x1000
	.set LOG_ENTRIES, 16384
	.set FRAME, 128+10*8

	.text
entry:
	lea -128(%rsp),%rsp		# the red zone
	push %rcx
	push %r11
	mov data(%rip),%r11
	mov (%r11),%r11
	rdgsbase %rcx
	lea (%rcx,%r11),%rcx
	jrcxz fast
	jmp slow
fast:	pop %r11
	pop %rcx
	lea 128(%rsp),%rsp
back:	.fill 32,1,0xcc			# the displaced instruction and the jump back
slow:
	pushfq
	push %rax
	push %rdx
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	cld
	mov data(%rip),%r9
	mov 8(%r9),%r8
	test %r8,%r8
	jz out
	rdgsbase %rcx
	cmp (%r8),%rcx
	jae out
	cmpl $0,check(%rip)
	je move				# a declared point: the user says that nothing has to be looked at
	lea FRAME(%rsp),%rsi		# where the program's stack begins
	mov 0x10(%r8),%rdi
	cmp 0x08(%r8),%rsi
	jb thread
	cmp %rdi,%rsi
	jae thread
	mov %rdi,%rax
	sub %rsi,%rax
	cmp 0x18(%r8),%rax
	ja out
	jmp scan
thread:	rdfsbase %rdi			# the thread control block lies at the top of a thread's own stack
	mov %rdi,%rax
	sub %rsi,%rax
	jbe out				# a coroutine's stack or an alternate one: not known
	cmp 0x18(%r8),%rax
	ja out
	mov %rsi,%r9
	mov %rdi,%r10
	mov %rsi,%rdi			# madvise(MADV_POPULATE_READ): fails where anything in between is not readable
	and $-4096,%rdi
	lea 4095(%r10),%rsi
	and $-4096,%rsi
	sub %rdi,%rsi
	mov $22,%edx
	mov $28,%eax
	syscall
	test %eax,%eax
	jnz out
	mov %r9,%rsi
	mov %r10,%rdi
scan:	add $7,%rsi
	and $-8,%rsi
	mov 0x20(%r8),%r9
	mov 0x28(%r8),%r10
windows:
	mov 0x30(%r8),%r11
	mov 0x38(%r8),%rcx
	jmp 2f
1:	mov (%rsi),%rax
	mov %rax,%rdx
	add $8,%rsi
	sub %r9,%rax
	cmp %r10,%rax
	jbe maybe
	cmp 0x48(%r8),%rdx
	je out				# what a signal handler interrupted may lie on another stack
	cmp 0x50(%r8),%rdx
	je out
	sub %r11,%rdx
	cmp %rcx,%rdx
	jbe out				# below a signal handler lies a routine of ours that is not through
2:	cmp %rdi,%rsi
	jb 1b
move:	mov (%r8),%rax
	rdgsbase %rcx
	cmp %rax,%rcx
	jae out				# a signal handler was here first
	wrgsbase %rax
	mov $186,%eax			# gettid
	syscall
	cmpl $0,check(%rip)
	jne 4f
	bts $31,%eax			# at a declared point
4:	mov data(%rip),%r9
	mov $1,%ecx
	lock xadd %rcx,0x10(%r9)
	and $(LOG_ENTRIES-1),%ecx
	mov (%r8),%rdx
	shl $32,%rdx
	mov %eax,%eax
	or %rdx,%rax
	mov %rax,LOG(%r9,%rcx,8)
out:	pop %r10
	pop %r9
	pop %r8
	pop %rdi
	pop %rsi
	pop %rdx
	pop %rax
	popfq
	jmp fast
maybe:	mov %rdx,%rax			# in the window: start < word <= end of a range?
	mov 0x40(%r8),%ecx
	lea 0x58(%r8),%rdx
3:	mov %rax,%r11
	sub (%rdx),%r11
	dec %r11
	cmp 8(%rdx),%r11
	jb out				# a call of forbidden code, or what looks like one
	add $16,%rdx
	dec %ecx
	jnz 3b
	jmp windows
	.balign 8
check:	.quad 1
data:	.quad 0
	.end
