/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Room for records that are too large for the stack, and the kernel's own path of a file. For logging only.
 *
 * No verdict may use this. The buffers are per CPU, and a program can be preempted on some kernels, so each buffer is
 * claimed and given back; a claim that finds all of them taken loses one record and counts it.
 */
#ifndef MG_SCRATCH_H
#define MG_SCRATCH_H

#include "mg_ring.h"

enum {
	MG_NAME_MAX = 255,
	MG_RECORD_MASK = MG_LONGEST_RECORD,	/* a string may begin at any place up to here */
	MG_SLOTS = 4,
	MG_DEEPEST = MG_PATH_BYTES,	/* components and mounts on the way to the root */
};

struct mg_scratch {
	__u32 busy;
	__u32 reserved;
	__u8 walk[MG_PATH_BYTES + MG_NAME_MAX + 1];		/* a path, filled from its end */
	__u8 record[MG_RECORD_MASK + 1 + MG_PATH_BYTES + 8];	/* the fixed part, then its strings */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MG_SLOTS);
	__type(key, __u32);
	__type(value, struct mg_scratch);
} mg_scratches SEC(".maps");

/* Claim a buffer; 0: none is free. */
static __always_inline struct mg_scratch *mg_claim_quietly(void)
{
	struct mg_scratch *scratch;
	__u32 i;

	for (i = 0; i < MG_SLOTS; i++) {
		__u32 slot = i;

		scratch = bpf_map_lookup_elem(&mg_scratches, &slot);
		if (scratch && !__sync_val_compare_and_swap(&scratch->busy, 0, 1))
			return scratch;
	}
	return 0;
}

/* The same; that none was free is a record lost, and counted. */
static __always_inline struct mg_scratch *mg_claim(const struct mg_session *session, int denial)
{
	struct mg_scratch *scratch = mg_claim_quietly();
	struct mg_counters *counters;

	if (scratch)
		return scratch;
	counters = mg_count(session);
	if (counters)
		__sync_fetch_and_add(&counters->scratch_busy, 1);
	mg_lost(session, denial);
	return 0;
}

static __always_inline void mg_release(struct mg_scratch *scratch)
{
	__sync_lock_test_and_set(&scratch->busy, 0);
}

struct mg_walk {
	struct mg_scratch *scratch;
	struct mount *mount;
	struct dentry *dentry;
	__u32 at;	/* where the path in `walk` begins */
	__u32 cut;
};

static __always_inline struct mount *mg_mount_of(struct vfsmount *mnt)
{
	return (void *)mnt - bpf_core_field_offset(struct mount, mnt);
}

static __always_inline int mg_prepend(struct mg_walk *walk, struct dentry *dentry)
{
	__u32 length = MG_READ(struct dentry, dentry, d_name.len);
	const void *name = (void *)MG_ADDRESS(struct dentry, dentry, d_name.name);

	if (length > MG_NAME_MAX || walk->at < length + 1) {
		walk->cut = 1;
		return 0;
	}
	walk->at -= length + 1;
	walk->scratch->walk[walk->at & (MG_PATH_BYTES - 1)] = '/';
	bpf_probe_read_kernel(&walk->scratch->walk[(walk->at + 1) & (MG_PATH_BYTES - 1)], length & MG_NAME_MAX, name);
	return 1;
}

/* One component towards the root, or one mount; returns 1 at the end. */
static long mg_step(__u32 index, void *data)
{
	struct mg_walk *walk = data;
	struct dentry *dentry = walk->dentry, *parent = (void *)MG_ADDRESS(struct dentry, dentry, d_parent);
	struct mount *mount = walk->mount, *above;

	if ((__u64)dentry == MG_ADDRESS(struct mount, mount, mnt.mnt_root)) {
		above = (void *)MG_ADDRESS(struct mount, mount, mnt_parent);
		if (above == mount)
			return 1;
		walk->dentry = (void *)MG_ADDRESS(struct mount, mount, mnt_mountpoint);
		walk->mount = above;
		return 0;
	}
	if (!mg_prepend(walk, dentry))
		return 1;
	walk->dentry = parent;
	return parent == dentry; /* not connected to any root: what we have is its name */
}

/* Append the path that a walk has filled in; returns its length, 1 at least. */
static __always_inline __u32 mg_put_walk(const struct mg_walk *walk, __u32 offset, __u8 *cut)
{
	struct mg_scratch *scratch = walk->scratch;
	__u32 length = MG_PATH_BYTES - walk->at;

	if (walk->cut)
		*cut = 1;
	if (!length) {
		scratch->record[offset & MG_RECORD_MASK] = '/';
		return 1;
	}
	if (length > MG_PATH_BYTES)
		return 0;
	bpf_probe_read_kernel(&scratch->record[offset & MG_RECORD_MASK], length,
			      &scratch->walk[walk->at & (MG_PATH_BYTES - 1)]);
	barrier_var(length); /* or the compiler drops bounds checks of callers, which the verifier cannot follow */
	return length;
}

/* Append the path of a struct path (an address) to the record at `offset`; returns its length. It is the path that d_path()
 * would show from the root of the mount namespace, whatever way the program named the file.
 *
 * Functions that are not static are checked by the verifier once each, not once per caller and path.
 */
__noinline int mg_put_path(struct mg_scratch *scratch, __u64 place, __u32 offset, __u8 *cut)
{
	struct mg_walk walk = { .scratch = scratch, .at = MG_PATH_BYTES };

	if (!scratch || !cut)
		return 0;
	walk.mount = mg_mount_of((void *)MG_ADDRESS(struct path, place, mnt));
	walk.dentry = (void *)MG_ADDRESS(struct path, place, dentry);
	if (!walk.dentry)
		return 0;
	bpf_loop(MG_DEEPEST, mg_step, &walk, 0);
	return mg_put_walk(&walk, offset, cut);
}

/* Append a string of the program; returns its length without the end. User memory: what it says is the program's word. */
static __always_inline __u32 mg_put_user_string(struct mg_scratch *scratch, __u64 string, __u32 offset, __u8 *cut)
{
	long length = bpf_probe_read_user_str(&scratch->record[offset & MG_RECORD_MASK], MG_PATH_BYTES, (void *)string);

	if (length <= 0)
		return 0;
	if (length == MG_PATH_BYTES)
		*cut = 1;
	return length - 1;
}

#endif
