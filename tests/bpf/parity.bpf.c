// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* For tests only: the kernel's answer about one open file, asked by system call (BPF_PROG_TEST_RUN) in place of a hook.
 *
 * The tests compile it with the flags of the product's programs; it is never part of the package.
 */
#include "mg_path.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct mg_asked {
	__u32 policy;
	__u32 fd;	/* of the caller, O_PATH is enough */
	__u32 asked;	/* enum mg_access, or-ed */
	__u32 rounds;	/* ask so many times, to measure */
	struct mg_seen seen;
};

struct mg_asking {
	__u64 dentry;
	__u32 policy;
	__u32 access;
	struct mg_seen seen;
};

static long mg_ask_once(__u32 index, void *data)
{
	struct mg_asking *asking = data;

	mg_look_up(asking->policy, asking->dentry, asking->access | MG_COMPARES, &asking->seen);
	return 0;
}

SEC("syscall")
int mg_parity(struct mg_asked *asked)
{
	struct mg_asking asking = { .policy = asked->policy, .access = asked->asked };
	struct file *file = mg_own_file(asked->fd);

	if (!file)
		return 1;
	asking.dentry = (__u64)BPF_CORE_READ(file, f_path.dentry);
	bpf_loop(asked->rounds, mg_ask_once, &asking, 0);
	asked->seen = asking.seen;
	return 0;
}

struct mg_asked_both {
	__u32 policy;
	__u32 fd;
	__u32 other;
	__u32 shared;	/* 0: nothing was said, each is to be asked by itself */
	struct mg_seen seen;
	struct mg_seen seen_other;
};

SEC("syscall")
int mg_parity_both(struct mg_asked_both *asked)
{
	struct file *file = mg_own_file(asked->fd), *other = mg_own_file(asked->other);
	struct mg_seen seen = {}, seen_other = {};

	if (!file || !other)
		return 1;
	asked->shared = mg_look_up_both(asked->policy, (__u64)BPF_CORE_READ(file, f_path.dentry),
					(__u64)BPF_CORE_READ(other, f_path.dentry), &seen, &seen_other);
	asked->seen = seen;
	asked->seen_other = seen_other;
	return 0;
}
