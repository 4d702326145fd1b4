/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The system call that a thread is in, as its registers at the entry say. */
#ifndef MG_ENTRY_H
#define MG_ENTRY_H

#include "mg_kernel.h"

struct mg_syscall {
	__u64 args[8];	/* six are used; a power of two, so that any index can be masked into bounds */
	__u64 number;
	long result;
};

#if defined(__TARGET_ARCH_arm64)
struct pt_regs___arm64 {
	__u64 regs[31];
	__u64 orig_x0;
	int syscallno;
} __attribute__((preserve_access_index));

static __always_inline __u64 mg_number(void *regs)
{
	return MG_READ(struct pt_regs___arm64, regs, syscallno);
}

static __always_inline long mg_result(void *regs)
{
	return MG_READ(struct pt_regs___arm64, regs, regs[0]);
}

/* The result has taken the place of the first argument by now; the kernel keeps that one apart. */
static __always_inline void mg_arguments(void *regs, struct mg_syscall *call)
{
	struct pt_regs___arm64 *real = regs;

	bpf_probe_read_kernel(call->args, 6 * sizeof(__u64), &real->regs);
	call->args[0] = BPF_CORE_READ(real, orig_x0);
}
#else
/* The kernel's name for it is not that of the headers. */
struct pt_regs___x86 {
	unsigned long ax;
	unsigned long orig_ax;
} __attribute__((preserve_access_index));

/* The kernel goes by the lower half alone; what a program puts into the upper one changes nothing. */
static __always_inline __u64 mg_number(void *regs)
{
	return (__u32)MG_READ(struct pt_regs___x86, regs, orig_ax);
}

static __always_inline long mg_result(void *regs)
{
	return MG_READ(struct pt_regs___x86, regs, ax);
}

static __always_inline void mg_arguments(void *regs, struct mg_syscall *call)
{
	__u64 words[8]; /* r10 to rdi lie side by side; all of pt_regs would take a third of the stack */

	bpf_probe_read_kernel(words, sizeof(words), &((struct pt_regs *)regs)->r10);
	call->args[0] = words[7];
	call->args[1] = words[6];
	call->args[2] = words[5];
	call->args[3] = words[0];
	call->args[4] = words[2];
	call->args[5] = words[1];
}
#endif

/* The registers of the current thread at its entry into the kernel; of a thread of the kernel's own they say nothing. */
static __always_inline void *mg_entry_registers(void)
{
	return (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
}

#endif
