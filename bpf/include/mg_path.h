/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the policy says about a file: the name is walked by the path automaton, in the kernel, from the file's own side.
 *
 * The name is the one inside the file system (`d_parent` up to its root), whatever mounts, roots and links the caller sees.
 * Where the host has mounted which part of which file system is known beforehand: `mg_roots` and `mg_branches` hold the state
 * of the automaton at those places. A part that is mounted twice has two names, and a rule on either counts.
 *
 * A program can be preempted on some kernels, so all state lives on the stack. There is little of it: the directories above
 * are kept MG_BLOCK at a time, and a deep path is climbed once for each block.
 */
#ifndef MG_PATH_H
#define MG_PATH_H

#include "mg_session.h"

enum {
	MG_BLOCK = 8,	/* a power of two, to be masked with */
	MG_CHUNK = 16,
	MG_LONGEST_NAME = 255,
	MG_DEEPEST_PATH = 1024,	/* directories and the file */
	MG_MOST_TRIES = 16,	/* of reading a name while directories are renamed */
	MG_MOST_STEPS = 1 << 17,
};

/* A state line: base, other, slash, out; then what `out` and the flags of an output row mean (policy/image.py). */
enum { MG_CARRIES = 1u << 31, MG_OUT_LINE = ~MG_CARRIES, MG_PINNED = 1 << 10 };

enum { MG_SB_NOUSER = 1u << 31, MG_SB_KERNMOUNT = 1 << 22 };
enum { MG_MAGIC_TMPFS = 0x01021994, MG_MAGIC_PROC = 0x9fa0, MG_MAGIC_DEVPTS = 0x1cd1, MG_MAGIC_HUGETLBFS = 0x958458f6 };

struct mg_lines {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct mg_line));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MG_POLICIES_LIMIT);
	__type(key, __u32);
	__array(values, struct mg_lines);
} mg_tables SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MG_POLICIES_LIMIT);
	__type(key, __u32);
	__type(value, struct mg_policy);
} mg_policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct mg_root_key);
	__type(value, struct mg_place);
} mg_roots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct mg_branch_key);
	__type(value, struct mg_place);
} mg_branches SEC(".maps");

/* The kernel's own sequence count of every rename; odd while one is going on. Kernels that keep no names of data have it
 * under no name: there a name may be read while it changes, half old and half new. The tree itself can only move directories
 * between places below which all is judged alike, so it gains nothing by that.
 */
extern const void rename_lock __ksym __weak;

/* What the policy says about one object. */
struct mg_seen {
	__u64 below;		/* equal for two places below which every path is judged alike */
	__u32 rules[3];		/* that decide read, write, execute; filled where the access was asked and not allowed */
	__u32 device;
	__u8 allowed;		/* enum mg_access, or-ed */
	__u8 protected;		/* accesses that a rule takes away, whatever others allow */
	__u8 pinned;		/* a rule would lose hold of something below, if this directory moved */
	__u8 detail;		/* why nothing could be said; then nothing is allowed */
};

/* A walk on its way. No pointers to maps or to other stacks in it, so that it can be handed to functions that the verifier
 * checks by themselves, once each; else every combination of what happened before would be followed anew.
 */
struct mg_lookup {
	struct mg_state state;
	__u64 chain[MG_BLOCK];	/* dentries from position `filled` on; position 0 is the object itself */
	__u8 chunk[MG_CHUNK];
	__u64 leaf;
	__u64 root;
	union {
		__u64 here;	/* while climbing */
		__u64 name;	/* address of what is left of the current name */
	};
	__u32 line, base, other, slash, out; /* the current state of the current factor */
	__u32 policy;
	__u32 device;
	__u32 sequence;
	__u32 node;		/* of the tree of mount roots; 0: none below */
	__u16 depth;
	__u16 todo;		/* positions from here to 0 are still to be fed */
	__u16 filled;
	__u16 left;		/* bytes of the current name */
	__u8 bytes;		/* of them in `chunk` */
	__u8 factors;
	__u8 asked;
	__u8 which;		/* the name that this pass is about */
	__u8 met;		/* names met so far in this pass */
	__u8 known;		/* the state counts */
	__u8 begins;		/* `chunk` begins a name */
	__u8 going;		/* a pass has begun */
	__u8 done;
	__u8 detail;
	__u8 tries;
	__u8 reserved;
};

static __always_inline __u64 mg_mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
	return hash ^ hash >> 29;
}

/* Nothing can be said about this object; returns 1, to end a loop. */
static __always_inline int mg_refuse(struct mg_lookup *walk, __u8 detail)
{
	walk->detail = detail;
	walk->done = 1;
	return 1;
}

/* --- the automaton -------------------------------------------------------------------------------------------- */

struct mg_machine {
	void *lines;
	struct mg_lookup *walk;
};

static __always_inline struct mg_line *mg_line_at(struct mg_machine *machine, __u32 at)
{
	return bpf_map_lookup_elem(machine->lines, &at);
}

/* A key must lie on the stack on older kernels, so the number is copied. */
static __always_inline void *mg_lines_of(__u32 policy)
{
	return bpf_map_lookup_elem(&mg_tables, &policy);
}

static __always_inline struct mg_policy *mg_policy_of(__u32 policy)
{
	return bpf_map_lookup_elem(&mg_policies, &policy);
}

static __always_inline int mg_enter(struct mg_machine *machine, __u32 at)
{
	struct mg_line *line = mg_line_at(machine, at);
	struct mg_lookup *walk = machine->walk;

	if (!line)
		return 0;
	walk->line = at;
	walk->base = line->words[0];
	walk->other = line->words[1];
	walk->slash = line->words[2];
	walk->out = line->words[3];
	return 1;
}

static long mg_feed_byte(__u32 index, void *data)
{
	struct mg_machine *machine = data;
	struct mg_lookup *walk = machine->walk;
	__u32 cell, next = walk->other;
	struct mg_line *line;

	if (index >= MG_CHUNK || index >= walk->bytes)
		return 1;
	if (walk->base) {
		cell = walk->base + walk->chunk[index];
		line = mg_line_at(machine, cell >> 1);
		if (!line)
			return mg_refuse(walk, MG_DETAIL_NO_POLICY);
		cell = (cell & 1) * 2;
		if (line->words[cell] == walk->line)
			next = line->words[cell + 1];
	} else if (next == walk->line) {
		return 1; /* whatever follows in this name, the state stays */
	}
	if (next != walk->line && !mg_enter(machine, next))
		return mg_refuse(walk, MG_DETAIL_NO_POLICY);
	return 0;
}

/* What holds from this place on: ranks rise, guards are added. */
static __always_inline int mg_carry(struct mg_machine *machine)
{
	struct mg_lookup *walk = machine->walk;
	struct mg_line *ranks = mg_line_at(machine, walk->out & MG_OUT_LINE);
	struct mg_line *guards = mg_line_at(machine, (walk->out & MG_OUT_LINE) + 1);

	if (!ranks || !guards)
		return mg_refuse(walk, MG_DETAIL_NO_POLICY);
	if (ranks->words[0] > walk->state.ranks[0])
		walk->state.ranks[0] = ranks->words[0];
	if (ranks->words[1] > walk->state.ranks[1])
		walk->state.ranks[1] = ranks->words[1];
	if (ranks->words[2] > walk->state.ranks[2])
		walk->state.ranks[2] = ranks->words[2];
	walk->state.matched |= guards->words[0] | (__u64)guards->words[1] << 32;
	walk->state.excepted |= guards->words[2] | (__u64)guards->words[3] << 32;
	return 0;
}

static long mg_feed_factor(__u32 index, void *data)
{
	struct mg_machine *machine = data;
	struct mg_lookup *walk = machine->walk;

	if (index >= MG_FACTORS_LIMIT || index >= walk->factors)
		return 1;
	if (!mg_enter(machine, walk->state.at[index]) || (walk->begins && !mg_enter(machine, walk->slash)))
		return mg_refuse(walk, MG_DETAIL_NO_POLICY);
	bpf_loop(MG_CHUNK, mg_feed_byte, machine, 0);
	walk->state.at[index] = walk->line;
	if (!walk->left && walk->out & MG_CARRIES)
		return mg_carry(machine);
	return 0;
}

/* Every factor takes the bytes in `chunk`. */
__noinline int mg_feed_chunk(struct mg_lookup *walk)
{
	struct mg_machine machine = { .walk = walk };

	if (!walk)
		return 0;
	machine.lines = mg_lines_of(walk->policy);
	if (!machine.lines)
		return mg_refuse(walk, MG_DETAIL_NO_POLICY);
	bpf_loop(MG_FACTORS_LIMIT, mg_feed_factor, &machine, 0);
	return 0;
}

/* --- the way to the root -------------------------------------------------------------------------------------- */

static __always_inline __u64 mg_parent(__u64 address)
{
	struct dentry *dentry = (void *)address;

	return (__u64)BPF_CORE_READ(dentry, d_parent);
}

static __always_inline __u32 mg_sequence(void)
{
	__u32 sequence = 0;

	if (&rename_lock)
		bpf_probe_read_kernel(&sequence, sizeof(sequence), &rename_lock);
	return sequence;
}

/* A loop's data must lie on the stack of who calls it, so these three get the address of a pointer. */
static long mg_climb(__u32 index, void *data)
{
	struct mg_lookup *walk = *(struct mg_lookup **)data;
	__u64 parent;

	if (walk->here == walk->root)
		return 1;
	if (index < MG_BLOCK)
		walk->chain[index] = walk->here;
	parent = mg_parent(walk->here);
	if (parent == walk->here || !parent)
		return mg_refuse(walk, MG_DETAIL_DETACHED);
	walk->here = parent;
	walk->depth = index + 1;
	return 0;
}

/* Count the directories above the object. */
__noinline int mg_measure(struct mg_lookup *walk)
{
	if (!walk)
		return 0;
	walk->done = 0;
	walk->detail = MG_DETAIL_NONE;
	walk->sequence = mg_sequence();
	walk->here = walk->leaf;
	walk->depth = 0;
	walk->filled = 0;
	bpf_loop(MG_DEEPEST_PATH, mg_climb, &walk, 0);
	if (!walk->done && walk->here != walk->root)
		mg_refuse(walk, MG_DETAIL_DEEP);
	return 0;
}

static long mg_ascend(__u32 index, void *data)
{
	struct mg_lookup *walk = *(struct mg_lookup **)data;

	walk->here = mg_parent(walk->here);
	return 0;
}

static long mg_keep(__u32 index, void *data)
{
	struct mg_lookup *walk = *(struct mg_lookup **)data;

	if (index >= MG_BLOCK)
		return 1;
	walk->chain[index] = walk->here;
	walk->here = mg_parent(walk->here);
	return 0;
}

/* Begin the name at position `todo`. */
__noinline int mg_next_name(struct mg_lookup *walk)
{
	struct dentry *dentry;
	__u32 at, from;

	if (!walk)
		return 0;
	at = walk->todo & (MG_BLOCK - 1);
	from = walk->todo & ~(MG_BLOCK - 1);
	if (walk->filled != from) {
		walk->here = walk->leaf;
		bpf_loop(from & (MG_DEEPEST_PATH - 1), mg_ascend, &walk, 0);
		bpf_loop(MG_BLOCK, mg_keep, &walk, 0);
		walk->filled = from;
	}
	dentry = (void *)walk->chain[at];
	walk->begins = 1;
	walk->left = BPF_CORE_READ(dentry, d_name.len);
	walk->name = (__u64)BPF_CORE_READ(dentry, d_name.name);
	if (!walk->left || walk->left > MG_LONGEST_NAME || !walk->name)
		mg_refuse(walk, MG_DETAIL_DETACHED);
	return 0;
}

/* --- places that are mounted ---------------------------------------------------------------------------------- */

/* A place that is mounted somewhere: does this pass's name begin here? */
static __always_inline void mg_meet(struct mg_lookup *walk, const struct mg_place *place, const struct mg_place *other)
{
	if (walk->which >= walk->met && walk->which - walk->met < place->names) {
		walk->state = other ? other->state : place->state;
		walk->known = 1;
	}
	walk->met += place->names;
	walk->node = place->node;
}

/* Begin a pass at the root of the file system. */
__noinline int mg_at_root(struct mg_lookup *walk)
{
	struct mg_place *place, *other = 0;
	struct mg_root_key key = {};

	if (!walk)
		return 0;
	walk->todo = walk->depth;
	walk->left = 0;
	walk->met = 0;
	walk->known = 0;
	key.policy = walk->policy;
	key.device = walk->device;
	place = bpf_map_lookup_elem(&mg_roots, &key);
	if (!place)
		return mg_refuse(walk, MG_DETAIL_UNKNOWN);
	if (walk->which && walk->which < place->names) {
		key.name = walk->which;
		other = bpf_map_lookup_elem(&mg_roots, &key);
		if (!other)
			return mg_refuse(walk, MG_DETAIL_NO_POLICY);
	}
	mg_meet(walk, place, other);
	return 0;
}

static __always_inline struct mg_place *mg_next_piece(struct mg_lookup *walk, struct mg_branch_key *key, __u32 from)
{
	__u32 bytes = walk->left - from;

	if (bytes > 2 * MG_BRANCH_BYTES)
		return 0;
	key->left = bytes;
	if (bytes > MG_BRANCH_BYTES)
		bytes = MG_BRANCH_BYTES;
	__builtin_memset(key->bytes, 0, sizeof(key->bytes));
	if (bpf_probe_read_kernel(key->bytes, bytes, (void *)(walk->name + from)))
		return 0;
	return bpf_map_lookup_elem(&mg_branches, key);
}

/* The current name may be a step on the way to a mount root. Where this pass's name of the object begins at it, its state
 * is known, and nothing of the name is left to be fed.
 */
__noinline int mg_branch(struct mg_lookup *walk)
{
	struct mg_place *place, *other = 0;
	struct mg_branch_key key = {};
	__u8 met;

	if (!walk)
		return 0;
	key.policy = walk->policy;
	key.device = walk->device;
	key.node = walk->node;
	walk->node = 0;
	place = mg_next_piece(walk, &key, 0);
	if (place && key.left > MG_BRANCH_BYTES) {
		key.node = place->node;
		place = mg_next_piece(walk, &key, MG_BRANCH_BYTES);
	}
	if (!place)
		return 0;
	if (walk->which > walk->met && walk->which - walk->met < place->names) {
		key.name = walk->which - walk->met;
		other = bpf_map_lookup_elem(&mg_branches, &key);
		if (!other)
			return mg_refuse(walk, MG_DETAIL_NO_POLICY);
	}
	met = walk->met;
	mg_meet(walk, place, other);
	if (walk->which >= met && walk->which < walk->met)
		walk->left = 0;
	return 0;
}

/* --- the verdict ---------------------------------------------------------------------------------------------- */

static __always_inline __u32 mg_word(struct mg_machine *machine, __u32 from, __u32 number)
{
	struct mg_line *line = mg_line_at(machine, from + number / 4);

	return line ? line->words[number & 3] : 0;
}

/* Place of the highest bit, from 1; 0 for none. */
static __always_inline __u32 mg_highest(__u64 bits)
{
	__u32 place = 0, step;

#pragma unroll
	for (step = 32; step; step /= 2)
		if (bits >> step) {
			place += step;
			bits >>= step;
		}
	return bits ? place + 1 : 0;
}

struct mg_concluding {
	struct mg_machine machine;
	struct mg_seen *seen;
};

/* One access. A rule that protects wins over what any name allows. */
static long mg_conclude_access(__u32 index, void *data)
{
	struct mg_concluding *concluding = data;
	struct mg_machine *machine = &concluding->machine;
	struct mg_lookup *walk = machine->walk;
	struct mg_seen *seen = concluding->seen;
	struct mg_policy *policy = mg_policy_of(walk->policy);
	__u32 rank, guard, bit = 1 << (index & 3);

	if (index >= 3 || !policy)
		return 1;
	rank = walk->state.ranks[index];
	seen->below = mg_mix(seen->below, rank);
	guard = mg_highest(walk->state.matched & ~walk->state.excepted & policy->guard_masks[index]);
	if (guard) {
		guard = mg_word(machine, policy->guards, guard - 1);
		if (guard > rank)
			rank = guard;
	}
	if (rank && rank < policy->protect_from) {
		seen->allowed |= bit;
		return 0;
	}
	if (rank) {
		seen->protected |= bit;
		seen->pinned = 1;
	}
	if (walk->asked & bit && (rank || !seen->rules[index]))
		seen->rules[index] = mg_word(machine, policy->rules, rank);
	return 0;
}

/* What lies below: the flags of every factor, and what they would do after a slash. */
static long mg_look_below(__u32 index, void *data)
{
	struct mg_concluding *concluding = data;
	struct mg_machine *machine = &concluding->machine;
	struct mg_lookup *walk = machine->walk;
	struct mg_line *ranks;

	if (index >= MG_FACTORS_LIMIT || index >= walk->factors || !mg_enter(machine, walk->state.at[index]))
		return 1;
	ranks = mg_line_at(machine, walk->out & MG_OUT_LINE);
	if (!ranks || ranks->words[3] & MG_PINNED)
		concluding->seen->pinned = 1;
	concluding->seen->below = mg_mix(concluding->seen->below, walk->slash);
	return 0;
}

/* Add what one name of the object says. */
static __always_inline void mg_conclude(struct mg_lookup *walk, struct mg_seen *seen)
{
	struct mg_concluding concluding = { .machine = { .walk = walk }, .seen = seen };

	concluding.machine.lines = mg_lines_of(walk->policy);
	if (!concluding.machine.lines) {
		mg_refuse(walk, MG_DETAIL_NO_POLICY);
		return;
	}
	bpf_loop(3, mg_conclude_access, &concluding, 0);
	bpf_loop(MG_FACTORS_LIMIT, mg_look_below, &concluding, 0);
	seen->below = mg_mix(mg_mix(seen->below, walk->state.matched), walk->state.excepted);
}

/* A pass has come to its end: is another one needed, for another name, or because directories moved meanwhile? */
__noinline int mg_end_pass(struct mg_lookup *walk, struct mg_seen *seen)
{
	if (!walk || !seen)
		return 0;
	if (!walk->done && !walk->met)
		mg_refuse(walk, MG_DETAIL_UNKNOWN); /* no mount shows this part of its file system */
	if (!walk->done)
		mg_conclude(walk, seen);
	walk->going = 0;
	walk->which++;
	if (!walk->done && walk->which < walk->met) {
		if (walk->which < MG_NAMES_LIMIT)
			return 0;
		mg_refuse(walk, MG_DETAIL_NAMES);
	}
	walk->done = 1;
	if (!(walk->sequence & 1) && walk->sequence == mg_sequence())
		return 0;
	walk->detail = MG_DETAIL_UNSTABLE;
	walk->which = 0;
	if (++walk->tries < MG_MOST_TRIES) {
		walk->done = 0;
		__builtin_memset(seen, 0, sizeof(*seen));
	}
	return 0;
}

struct mg_looking {
	struct mg_lookup walk;
	struct mg_seen *seen;
};

/* The next piece of a name: at most MG_CHUNK bytes of one component. */
static long mg_feed(__u32 index, void *data)
{
	struct mg_looking *looking = data;
	struct mg_lookup *walk = &looking->walk;
	__u32 bytes;

	if (!walk->going) {
		if (!walk->which)
			mg_measure(walk);
		if (!walk->done)
			mg_at_root(walk);
		walk->going = 1;
	}
	if (walk->done || (!walk->left && !walk->todo)) {
		mg_end_pass(walk, looking->seen);
		return walk->done != 0;
	}
	if (!walk->left) {
		walk->todo--;
		mg_next_name(walk);
		if (walk->node && !walk->done)
			mg_branch(walk);
		if (walk->done || !walk->left)
			return 0;
	}
	bytes = walk->left;
	if (bytes > MG_CHUNK)
		bytes = MG_CHUNK;
	if (bpf_probe_read_kernel(walk->chunk, bytes, (void *)walk->name)) {
		mg_refuse(walk, MG_DETAIL_DETACHED);
		return 0;
	}
	walk->bytes = bytes;
	walk->name += bytes;
	walk->left -= bytes;
	if (walk->known)
		mg_feed_chunk(walk);
	walk->begins = 0;
	return 0;
}

/* The device of a superblock for `mg_roots`: its own, or for what the tree mounted in a user namespace of its own, what it
 * is judged like. Others of those have none: the number of one that is gone is given to the next.
 */
static __always_inline __u32 mg_device(struct super_block *sb)
{
	if (!BPF_CORE_READ(sb, s_user_ns, level))
		return BPF_CORE_READ(sb, s_dev);
	switch (BPF_CORE_READ(sb, s_magic)) {
	case MG_MAGIC_TMPFS:
		return MG_KINDRED_TMPFS;
	case MG_MAGIC_PROC:
		return MG_KINDRED_PROC;
	case MG_MAGIC_DEVPTS:
		return MG_KINDRED_DEVPTS;
	}
	return 0;
}

/* Judge the object that a dentry stands for; it need not exist yet. In `seen`: what is allowed, and the rules of those
 * accesses in `asked` that are not.
 */
__noinline int mg_look_up(__u32 policy, __u64 object, __u32 asked, struct mg_seen *seen)
{
	struct mg_looking looking = { .walk = { .leaf = object, .policy = policy, .asked = asked } };
	struct mg_policy *head = mg_policy_of(policy);
	struct dentry *dentry = (void *)object;
	struct super_block *sb = BPF_CORE_READ(dentry, d_sb);

	if (!seen)
		return 0;
	__builtin_memset(seen, 0, sizeof(*seen));
	seen->detail = MG_DETAIL_NO_POLICY;
	if (!head || !head->factors)
		return 0;
	looking.seen = seen;
	looking.walk.factors = head->factors;
	looking.walk.device = mg_device(sb);
	looking.walk.root = (__u64)BPF_CORE_READ(sb, s_root);
	bpf_loop(MG_MOST_STEPS, mg_feed, &looking, 0);
	seen->device = looking.walk.device;
	seen->detail = looking.walk.done ? looking.walk.detail : MG_DETAIL_DEEP;
	seen->allowed &= ~seen->protected;
	if (seen->detail)
		seen->allowed = 0;
	return 0;
}

#endif
