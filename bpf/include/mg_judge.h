/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One request of a guarded task on a file: look the file up, answer, and put a refusal on record.
 *
 * The same bodies are LSM programs and, where `bpf` is not among the active modules, modify-return programs on the functions
 * that call the modules. What a hook is given is read from the context by place, as kernels differ in types and places.
 * A program that runs at all knows that nobody refused before it: the kernel ends the chain at the first refusal.
 */
#ifndef MG_JUDGE_H
#define MG_JUDGE_H

#include "mg_path.h"
#include "mg_scratch.h"
#include "mg_spoken.h"

enum { MG_EPERM = 1, MG_EACCES = 13, MG_CAP_SYS_ADMIN = 1 << 21 };

/* `name` is the hook's, `function` the one that calls it: mostly security_<name>. */
#define MG_HOOK_OF(name, function)						\
	static __always_inline int mg_on_##name(__u64 *ctx);			\
	SEC("lsm/" #name) int mg_lsm_##name(__u64 *ctx)				\
	{									\
		return mg_on_##name(ctx);					\
	}									\
	SEC("fmod_ret/" #function) int mg_mod_##name(__u64 *ctx)		\
	{									\
		return mg_on_##name(ctx);					\
	}									\
	static __always_inline int mg_on_##name(__u64 *ctx)

#define MG_HOOK(name) MG_HOOK_OF(name, security_##name)

/* The hook's argument at a place, as a number: an address that says nothing to the verifier and is read with care. */
static __always_inline __u64 mg_given(__u64 *ctx, __u32 place)
{
	return MG_NUMBER_AT(ctx + place);
}

/* The session of the calling task, if files and processes are judged here; 0: leave at once. */
static __always_inline struct mg_session *mg_guarded(void)
{
	struct mg_session *session = mg_current_session();

	return session && session->flags & MG_SESSION_FILES ? session : 0;
}

/* A stacked file system (overlay) does the same again on the layer below, with the rights of who mounted it; the act was judged
 * above. A guarded task itself has no capability, and inside a user namespace none that counts here.
 */
static __always_inline int mg_on_behalf(void)
{
	const struct cred *cred = mg_current_task()->cred;
	__u32 capabilities = MG_ADDRESS(struct cred, cred, cap_effective);

	return capabilities & MG_CAP_SYS_ADMIN && !MG_READ(struct user_namespace, MG_READ(struct cred, cred, user_ns), level);
}

/* The session of a task that acts for itself. */
static __always_inline struct mg_session *mg_guarded_itself(void)
{
	struct mg_session *session = mg_guarded();

	return session && !mg_on_behalf() ? session : 0;
}

/* Is a task of the caller's own tree? To who is kept to less than the tree has only those that are kept with it are. */
static __always_inline int mg_is_own_task(__u64 address)
{
	struct task_struct *task = (void *)address;
	struct mg_session *session;
	__u64 its;

	if (!task)
		return 0;
	its = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	if (its == bpf_get_current_cgroup_id())
		return 1;
	session = mg_current_session();
	return session && !session->kept && mg_is_of_slot(session->slot, its);
}

static __always_inline __u64 mg_dentry_of_path(__u64 address)
{
	return MG_ADDRESS(struct path, address, dentry);
}

static __always_inline __u64 mg_dentry_of_file(__u64 address)
{
	return MG_ADDRESS(struct file, address, f_path.dentry);
}

/* --- the record ----------------------------------------------------------------------------------------------- */

struct mg_denied_key {
	__u64 life;
	__u64 dentry;
	__u64 parent;
	__u64 name;
	__u64 other;
	__u32 pid;
	__u32 rule;
	__u8 op;
	__u8 access;
	__u8 detail;
	__u8 second;
	__u32 reserved;
};

/* Nothing makes room; a full map means that every further refusal is sent singly. */
struct mg_denied_of_one {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__uint(key_size, sizeof(struct mg_denied_key));
	__uint(value_size, sizeof(struct mg_sum));
};

MG_PER_SLOT(mg_file_denied, struct mg_denied_of_one);

/* What a refusal was about besides its objects. */
struct mg_about {
	__u32 rule;
	__u8 op;
	__u8 access;
	__u8 detail;
	__u8 second;	/* the rule is about the second object */
};

static long mg_prepend_parent(__u32 index, void *data)
{
	struct mg_walk *walk = data;
	struct dentry *dentry = walk->dentry, *parent = BPF_CORE_READ(dentry, d_parent);

	if (parent == dentry || !mg_prepend(walk, dentry))
		return 1;
	walk->dentry = parent;
	return 0;
}

/* Append the name of a dentry inside its file system; returns its length. */
__noinline int mg_put_name(struct mg_scratch *scratch, __u64 dentry, __u32 offset, __u8 *cut)
{
	struct mg_walk walk = { .scratch = scratch, .dentry = (void *)dentry, .at = MG_PATH_BYTES };

	if (!scratch || !cut)
		return 0;
	bpf_loop(MG_DEEPEST, mg_prepend_parent, &walk, 0);
	return mg_put_walk(&walk, offset, cut);
}

static __always_inline __u32 mg_device_of(__u64 address)
{
	struct dentry *dentry = (void *)address;

	return BPF_CORE_READ(dentry, d_sb, s_dev);
}

/* The last name alone, where no room was free for more: a denial is never dropped for that. */
struct mg_short {
	struct mg_file file;
	__u8 name[64];
};

static __always_inline void mg_fill_file(struct mg_file *record, const struct mg_about *about, __u64 dentry, __u64 other,
					 __u64 count, __u64 series)
{
	mg_fill_head(&record->head, MG_RECORD_FILE);
	record->series = series;
	record->count = count;
	record->rule = about->rule;
	record->device = mg_device_of(dentry);
	record->device2 = other ? mg_device_of(other) : 0;
	record->op = about->op;
	record->access = about->access;
	record->verdict = MG_DENY;
	record->detail = about->detail;
	record->second = about->second;
}

__noinline int mg_send_short(const struct mg_session *session, const struct mg_about *about, __u64 object, __u64 count)
{
	struct dentry *dentry = (void *)object;
	struct mg_short record = {};
	__u32 length;

	if (!session || !about)
		return 0;
	mg_fill_file(&record.file, about, object, 0, count, 0);
	record.file.cut = 1;
	length = BPF_CORE_READ(dentry, d_name.len);
	if (length > sizeof(record.name))
		length = sizeof(record.name);
	if (!bpf_probe_read_kernel(record.name, length, BPF_CORE_READ(dentry, d_name.name)))
		record.file.name_length = length;
	mg_send(session, &record, sizeof(record), 1);
	return 0;
}

__noinline int mg_send_whole(const struct mg_session *session, const struct mg_about *about, __u64 dentry, __u64 other,
			     const struct mg_sum *stands_for)
{
	struct mg_scratch *scratch;
	struct mg_file *record;
	__u32 at = sizeof(*record);
	__u8 cut = 0;

	if (!session || !about || !stands_for)
		return 0;
	scratch = mg_claim_quietly();
	if (!scratch)
		return mg_send_short(session, about, dentry, stands_for->total);
	record = (void *)scratch->record;
	__builtin_memset(record, 0, sizeof(*record));
	mg_fill_file(record, about, dentry, other, stands_for->total, stands_for->series);
	record->name_length = mg_put_name(scratch, dentry, at, &cut);
	at += record->name_length;
	if (other) {
		record->name2_length = mg_put_name(scratch, other, at, &cut);
		at += record->name2_length;
	}
	record->cut = cut;
	if (at <= MG_RECORD_MASK)
		mg_send(session, record, at, 1);
	mg_release(scratch);
	return 0;
}

/* A function of its own: what follows needs all the room that there is on the stack. */
static __noinline __u64 mg_life_apart(void)
{
	return mg_life();
}

/* Put a refusal on record. `packed`: struct mg_about, as one number. */
__noinline int mg_report_file(const struct mg_session *session, __u64 object, __u64 other, __u64 packed)
{
	struct mg_about about = *(struct mg_about *)&packed;
	struct dentry *dentry = (void *)object;
	struct mg_denied_key key = {};
	struct mg_sum stands_for = {};

	if (!session)
		return 0;
	key.life = mg_life_apart();
	key.dentry = object;
	key.parent = (__u64)BPF_CORE_READ(dentry, d_parent);
	key.name = BPF_CORE_READ(dentry, d_name.hash_len);
	key.other = other;
	key.pid = bpf_get_current_pid_tgid() >> 32;
	key.rule = about.rule;
	key.op = about.op;
	key.access = about.access;
	key.detail = about.detail;
	key.second = about.second;
	stands_for.total = mg_tally(session, mg_of_slot(&mg_file_denied, session->slot), &key, &stands_for.series);
	if (stands_for.total)
		mg_send_whole(session, &about, object, other, &stands_for);
	return 0;
}

static __always_inline int mg_deny_file(const struct mg_session *session, __u64 dentry, __u64 other, __u32 rule, __u8 op,
					__u8 access, __u8 detail, __u8 second)
{
	mg_report_file(session, dentry, other,
		       rule | (__u64)op << 32 | (__u64)access << 40 | (__u64)detail << 48 | (__u64)second << 56);
	return -MG_EACCES;
}

/* --- the request ---------------------------------------------------------------------------------------------- */

/* Pipes, sockets, memory files and what else the kernel keeps to itself have no path. */
static __always_inline int mg_is_internal(__u64 address)
{
	__u64 sb = MG_READ(struct dentry, address, d_sb);
	unsigned long flags = MG_READ(struct super_block, sb, s_flags);

	if (flags & MG_SB_NOUSER)
		return 1;
	return flags & MG_SB_KERNMOUNT && MG_READ(struct super_block, sb, s_magic) == MG_MAGIC_HUGETLBFS;
}

/* What of the asked accesses is refused; 0: all is allowed. While learning, only what a rule takes away is refused. */
static __always_inline __u32 mg_missing(const struct mg_session *session, const struct mg_seen *seen, __u32 access)
{
	__u32 missing = access & ~seen->allowed;

	if (session->flags & MG_SESSION_AUDIT)
		missing &= seen->protected;
	return missing;
}

/* The rule of the first of the accesses, read before write before execute. */
static __always_inline __u32 mg_rule_of(const struct mg_seen *seen, __u32 missing)
{
	if (missing & MG_READ)
		return seen->rules[0];
	return missing & MG_WRITE ? seen->rules[1] : seen->rules[2];
}

/* A whole request on one object. 0, or a negative error. */
static __always_inline int mg_ask(const struct mg_session *session, __u64 dentry, __u32 access, __u8 op, __u8 detail)
{
	struct mg_seen seen;
	__u32 missing;

	if (mg_is_internal(dentry))
		return 0;
	mg_look_up(session->files, dentry, access, &seen);
	missing = mg_missing(session, &seen, access);
	if (!missing)
		return 0;
	return mg_deny_file(session, dentry, 0, mg_rule_of(&seen, missing), op, missing,
			    seen.detail ? seen.detail : detail, 0);
}

/* The same for a system call on a path: the record of system calls need not tell of it again. */
static __always_inline int mg_ask_by_path(const struct mg_session *session, __u64 dentry, __u32 access, __u8 op)
{
	int answer = mg_ask(session, dentry, access, op, MG_DETAIL_NONE);

	if (answer)
		mg_speak();
	return answer;
}

#endif
