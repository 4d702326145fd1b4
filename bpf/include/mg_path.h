/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the policy says about a file: the name is walked by the path automaton, in the kernel, from the file's own side.
 *
 * The name is the one inside the file system (`d_parent` up to its root), whatever mounts, roots and links the caller sees.
 * Where the host has mounted which part of which file system is known beforehand: `mg_roots` and `mg_branches` hold the state
 * of the automaton at those places. A part that is mounted twice has two names, and a rule on either counts.
 *
 * A program can be preempted on some kernels, so all state lives on the stack. There is little of it: of the directories above
 * MG_BLOCK are kept at a time, and the way to each further block is climbed from a mark.
 *
 * What a walk costs is calls: of helpers, and of the functions that loops call. Reading one more word costs nothing beside them,
 * so the lines lie in pages that are read in place, names are climbed and kept eight at a time, and most names show by their
 * first byte that they say nothing to a factor.
 */
#ifndef MG_PATH_H
#define MG_PATH_H

#include "mg_session.h"

enum {
	MG_BLOCK = 8,	/* a power of two, to be masked with */
	MG_MARKS = 1,	/* another one */
	MG_NOTED = 64,	/* the first positions, of which each has a bit that says whether its name may tell something */
	MG_CHUNK = 16,
	MG_LONGEST_NAME = 255,
	MG_DEEPEST_PATH = 1024,	/* directories and the file */
	MG_MOST_TRIES = 16,	/* of reading a name while directories are renamed */
	MG_MOST_STEPS = 1 << 17,
	MG_NO_PAGE = MG_PAGES_LIMIT,
	MG_MOST_TURNS = MG_FACTORS_LIMIT * (MG_CHUNK + 1),	/* each takes a byte, or is the last */
};

/* A state line: base, other, slash, out; then what `out` means (policy/image.py). */
enum {
	MG_CARRIES = 1u << 31,
	MG_PINNED = 1u << 30,
	MG_DULL = 1u << 29,	/* a name whose first byte is no edge says nothing */
	MG_DULL_PINNED = 1u << 28,	/* and is pinned */
	MG_OUT_LINE = MG_DULL_PINNED - 1,
};

/* Beside enum mg_access, in what is asked. */
enum { MG_COMPARES = 8 };

enum { MG_SB_NOUSER = 1u << 31, MG_SB_KERNMOUNT = 1 << 22 };
enum { MG_MAGIC_TMPFS = 0x01021994, MG_MAGIC_PROC = 0x9fa0, MG_MAGIC_DEVPTS = 0x1cd1, MG_MAGIC_HUGETLBFS = 0x958458f6 };

/* A map of one page: maps of a size that never varies are read without a call. */
struct mg_lines {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct mg_page));
};

/* MG_PAGES_LIMIT places for each policy. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MG_POLICIES_LIMIT * MG_PAGES_LIMIT);
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
 * under no name.
 */
extern const void rename_lock __ksym __weak;

/* What the policy says about one object. */
struct mg_seen {
	__u64 below;		/* equal for two places below which every path is judged alike; filled where MG_COMPARES was asked */
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
	union {
		struct {
			__u64 chain[MG_BLOCK];	/* addresses of names, of `filled` and the next positions; position 0 is the object itself */
			__u8 lengths[MG_BLOCK];
		};
		struct { /* once the names of a folder are all fed, and those of two objects in it follow */
			struct mg_state state;
			__u8 settled;
		} folder;
	};
	__u64 marks[MG_MARKS];	/* the dentries at each MG_BLOCK positions */
	union {
		__u8 chunk[MG_CHUNK];
		__u64 words[2];
	};
	__u64 leaf;
	__u64 root;
	__u64 telling;		/* of the positions below `filled`, the first MG_NOTED */
	union {
		__u64 here;	/* while climbing */
		__u64 name;	/* address of what is left of the current name */
	};
	__u32 policy;
	__u32 device;
	__u32 sequence;		/* differs when something was renamed: on the host, or when `careful` on the way to the root */
	__u32 node;		/* of the tree of mount roots; 0: none below */
	__u16 depth;
	__u16 todo;		/* positions from here to 0 are still to be fed */
	__u16 filled;
	__u16 met;		/* names met so far in this pass */
	__u8 left;		/* bytes of the current name */
	__u8 bytes;		/* of them in `chunk` */
	__u8 factors;
	__u8 settled;		/* factors that no further name can change */
	__u8 dull;		/* factors that the current name says nothing to */
	__u8 which;		/* the name that this pass is about */
	__u8 begins;		/* `chunk` begins a name */
	__u8 done;
	/* There is little stack, so what is seldom looked at is packed. */
	__u8 asked : 3;
	__u8 tries : 5;		/* as many as MG_MOST_TRIES */
	__u8 detail : 5;
	__u8 careful : 1;
	__u8 moving : 1;	/* something was just being renamed */
	__u8 halts : 1;		/* at the end of the names, as others may follow */
	__u8 known : 1;		/* the state counts */
	__u8 going : 1;		/* a pass has begun */
	__u8 compares : 1;	/* what lies below is to be compared with what lies below another place */
	__u8 taken[MG_FACTORS_LIMIT];	/* bytes of the chunk that waiting factors have taken */
	__u32 waiting;		/* factors that need another turn, in four bits each */
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

/* Keys must lie on the stack on older kernels, so numbers are copied. */
static __always_inline struct mg_page *mg_page_of(__u32 policy, __u32 number)
{
	__u32 key = policy * MG_PAGES_LIMIT + (number & (MG_PAGES_LIMIT - 1)), only = 0;
	void *lines = bpf_map_lookup_elem(&mg_tables, &key);

	return lines ? bpf_map_lookup_elem(lines, &only) : 0;
}

static __always_inline struct mg_line *mg_line_at(__u32 policy, __u32 at)
{
	struct mg_page *page = mg_page_of(policy, at / MG_PAGE_LINES);

	return page ? &page->lines[at & (MG_PAGE_LINES - 1)] : 0;
}

/* The page that was read last: most policies have one. */
struct mg_open_page {
	struct mg_page *page;
	__u32 number;
};

static __always_inline struct mg_line *mg_turn_to(const struct mg_lookup *walk, struct mg_open_page *open, __u32 at)
{
	__u32 number = at / MG_PAGE_LINES;

	if (number != open->number) {
		open->page = mg_page_of(walk->policy, number);
		open->number = number;
	}
	return open->page ? &open->page->lines[at & (MG_PAGE_LINES - 1)] : 0;
}

static __always_inline struct mg_policy *mg_policy_of(__u32 policy)
{
	return bpf_map_lookup_elem(&mg_policies, &policy);
}

/* What holds from this place on: ranks rise, guards are added. */
static __always_inline int mg_carry(struct mg_lookup *walk, struct mg_open_page *open, __u32 row)
{
	struct mg_line *ranks = mg_turn_to(walk, open, row);
	struct mg_line *guards = mg_turn_to(walk, open, row + 1);

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

/* A factor takes bytes of the chunk; at the end of a name it is left where the next one begins. 1: it has taken all. 0: it needs
 * another turn, as the cells go on in another page, or at another state that has edges. So the loop has few ways through, and the
 * verifier few to follow: with all of it inside, a program took three times as long to load.
 */
static __always_inline int mg_take(struct mg_lookup *walk, struct mg_open_page *open, __u32 index, __u32 byte)
{
	__u32 at = walk->state.at[index], base, other, place, flags, begin;
	struct mg_line *state = mg_turn_to(walk, open, at), *cell;

	if (!state)
		return mg_refuse(walk, MG_DETAIL_NO_POLICY);
	base = state->words[0];
	other = state->words[1];
	flags = walk->begins && !byte ? state->words[3] : 0;
	if (!mg_turn_to(walk, open, base + walk->chunk[byte & (MG_CHUNK - 1)]))
		return mg_refuse(walk, MG_DETAIL_NO_POLICY);
	begin = open->number * MG_PAGE_LINES;
	for (; byte < MG_CHUNK; byte++) {
		if (byte >= walk->bytes)
			break;
		place = base + walk->chunk[byte] - begin;
		if (place >= MG_PAGE_LINES) {
			walk->state.at[index] = at;
			walk->taken[index] = byte;
			return 0;
		}
		cell = &open->page->lines[place];
		if (cell->words[0] == at) {
			at = cell->words[1];
			base = cell->words[2];
			other = cell->words[3];
			continue;
		}
		if (other == at) {
			if (!base)
				break;
			continue;
		}
		if (!byte && flags & MG_DULL) {
			walk->dull |= 1 << index;
			if (flags & MG_DULL_PINNED)
				walk->state.pinned = 1;
			else if (!base)
				walk->settled |= 1 << index; /* no further name says anything to it */
			return 1;
		}
		at = other;
		state = mg_turn_to(walk, open, at);
		if (!state)
			return mg_refuse(walk, MG_DETAIL_NO_POLICY);
		if (!state->words[0] && state->words[1] == at)
			break; /* whatever follows in this name, the state stays */
		walk->state.at[index] = at;
		walk->taken[index] = byte + 1;
		return 0;
	}
	walk->state.at[index] = at;
	if (walk->left)
		return 1;
	state = mg_turn_to(walk, open, at);
	if (!state)
		return mg_refuse(walk, MG_DETAIL_NO_POLICY);
	walk->state.at[index] = state->words[2];
	if (state->words[3] & MG_PINNED)
		walk->state.pinned = 1;
	if (state->words[3] & MG_CARRIES)
		mg_carry(walk, open, state->words[3] & MG_OUT_LINE);
	return 1;
}

/* Every factor takes the bytes in `chunk`; one that does not take all is left waiting. */
__noinline int mg_feed_chunk(struct mg_lookup *walk)
{
	struct mg_open_page open = { .number = MG_NO_PAGE };
	__u32 index;

	if (!walk)
		return 0;
	walk->waiting = 0;
	if (walk->begins)
		walk->dull = walk->state.pinned = 0;
	for (index = 0; index < MG_FACTORS_LIMIT; index++) {
		if (index >= walk->factors)
			break;
		if ((walk->settled | (walk->begins ? 0 : walk->dull)) >> index & 1)
			continue;
		if (!mg_take(walk, &open, index, 0))
			walk->waiting = walk->waiting << 4 | 8 | index;
	}
	return 0;
}

static long mg_take_more(__u32 turn, void *data)
{
	struct mg_lookup *walk = *(struct mg_lookup **)data;
	__u32 index = walk->waiting & (MG_FACTORS_LIMIT - 1);
	struct mg_open_page open = { .number = MG_NO_PAGE };

	if (mg_take(walk, &open, index, walk->taken[index]))
		walk->waiting >>= 4;
	return !walk->waiting;
}

/* Turns for the factors that wait. A function of its own, as it needs other stack than the one before. */
__noinline int mg_feed_rest(struct mg_lookup *walk)
{
	if (!walk)
		return 0;
	bpf_loop(MG_MOST_TURNS, mg_take_more, &walk, 0);
	if (walk->waiting)
		mg_refuse(walk, MG_DETAIL_NO_POLICY);
	return 0;
}

/* --- the way to the root -------------------------------------------------------------------------------------- */

/* Three of a dentry's own words, as they lie in almost every kernel. */
struct mg_entry {
	__u64 parent;
	__u32 hash;
	__u32 length;
	__u64 name;
};

static __always_inline void mg_read_entry(struct mg_entry *entry, __u64 dentry)
{
	__u32 at = bpf_core_field_offset(struct dentry, d_parent);

	if (!MG_READS_FREELY &&
	    bpf_core_field_offset(struct dentry, d_name.len) == at + __builtin_offsetof(struct mg_entry, length) &&
	    bpf_core_field_offset(struct dentry, d_name.name) == at + __builtin_offsetof(struct mg_entry, name)) {
		bpf_probe_read_kernel(entry, sizeof(*entry), (void *)(dentry + at));
		return;
	}
	entry->parent = MG_READ(struct dentry, dentry, d_parent);
	entry->length = MG_READ(struct dentry, dentry, d_name.len);
	entry->name = MG_READ(struct dentry, dentry, d_name.name);
}

static __always_inline __u64 mg_parent(__u64 dentry)
{
	return MG_READ(struct dentry, dentry, d_parent);
}

static __always_inline __u32 mg_sequence(void)
{
	return &rename_lock ? MG_READ(struct seqcount, &rename_lock, sequence) : 0;
}

/* Each directory has a count of its own, too. */
static __always_inline void mg_count_moves(struct mg_lookup *walk)
{
	__u32 sequence = MG_READ(struct dentry, walk->here, d_seq.seqcount.sequence);

	walk->sequence = mg_mix(mg_mix(walk->sequence, walk->here), sequence);
	walk->moving |= sequence & 1;
}

static __always_inline void mg_keep_name(struct mg_lookup *walk, __u32 position, const struct mg_entry *entry)
{
	position &= MG_BLOCK - 1;
	walk->chain[position] = entry->name;
	walk->lengths[position] = entry->length > MG_LONGEST_NAME ? 0 : entry->length;
}

static __always_inline __u8 mg_byte_at(__u64 address)
{
	union {
		__u64 word;
		__u8 first;
	} read = {};

	if (MG_READS_FREELY)
		read.word = MG_NUMBER_AT(address);
	else
		bpf_probe_read_kernel(&read.first, 1, (void *)address);
	return read.first;
}

/* Can the kept name at a position say anything to a dull state? One that cannot be read does. */
static __always_inline int mg_tells(const struct mg_lookup *walk, const struct mg_policy *policy, __u32 position)
{
	__u8 first;

	position &= MG_BLOCK - 1;
	if (!walk->lengths[position] || !walk->chain[position])
		return 1;
	first = mg_byte_at(walk->chain[position]);
	return policy->telling[first / 64] >> (first & 63) & 1;
}

/* A block is climbed and another one takes its place: note which of its names may tell something. No function of its own: the
 * chain of calls that ends here has no stack left for one.
 */
static __always_inline void mg_note_telling(struct mg_lookup *walk, __u32 first)
{
	struct mg_policy *policy = mg_policy_of(walk->policy);
	__u32 position;

	if (!policy)
		return;
#pragma clang loop unroll(disable)
	for (position = 0; position < MG_BLOCK; position++)
		if (mg_tells(walk, policy, position))
			walk->telling |= 1ull << ((first + position) & (MG_NOTED - 1));
}

/* The next MG_BLOCK positions. A loop's data must lie on the stack of who calls it, so these two get the address of a pointer. */
static long mg_climb(__u32 index, void *data)
{
	struct mg_lookup *walk = *(struct mg_lookup **)data;
	struct mg_entry entry = {};
	__u32 position;

	if (walk->here == walk->root)
		return 1;
	if (index && index - 1 < MG_MARKS)
		walk->marks[(index - 1) & (MG_MARKS - 1)] = walk->here;
	if (index && index <= MG_NOTED / MG_BLOCK)
		mg_note_telling(walk, (index - 1) * MG_BLOCK);
#pragma unroll
	for (position = 0; position < MG_BLOCK; position++) {
		if (walk->here == walk->root)
			return 1;
		if (walk->careful)
			mg_count_moves(walk);
		mg_read_entry(&entry, walk->here);
		mg_keep_name(walk, position, &entry);
		if (entry.parent == walk->here || !entry.parent)
			return mg_refuse(walk, MG_DETAIL_DETACHED);
		walk->here = entry.parent;
		walk->depth++;
	}
	return 0;
}

/* Count the directories above the object. */
__noinline int mg_measure(struct mg_lookup *walk)
{
	if (!walk)
		return 0;
	walk->done = 0;
	walk->detail = MG_DETAIL_NONE;
	walk->sequence = walk->careful ? 0 : mg_sequence();
	walk->moving = walk->sequence & 1;
	walk->here = walk->leaf;
	walk->depth = 0;
	walk->telling = 0;
	bpf_loop(MG_DEEPEST_PATH / MG_BLOCK, mg_climb, &walk, 0);
	walk->filled = walk->depth > MG_BLOCK ? walk->depth - MG_BLOCK : 0;
	if (!walk->done && walk->here != walk->root)
		mg_refuse(walk, MG_DETAIL_DEEP);
	return 0;
}

static long mg_ascend(__u32 index, void *data)
{
	struct mg_lookup *walk = *(struct mg_lookup **)data;
	__u32 position;

#pragma unroll
	for (position = 0; position < MG_BLOCK; position++)
		walk->here = mg_parent(walk->here);
	return 0;
}

/* Keep the names of the block that holds position `todo`. */
__noinline int mg_keep_block(struct mg_lookup *walk)
{
	struct mg_entry entry = {};
	__u32 block, mark, position;

	if (!walk)
		return 0;
	block = walk->todo / MG_BLOCK;
	mark = block > MG_MARKS ? MG_MARKS : block;
	walk->here = mark ? walk->marks[(mark - 1) & (MG_MARKS - 1)] : walk->leaf;
	if (block > mark)
		bpf_loop((block - mark) & (MG_DEEPEST_PATH / MG_BLOCK - 1), mg_ascend, &walk, 0);
#pragma unroll
	for (position = 0; position < MG_BLOCK; position++) {
		mg_read_entry(&entry, walk->here);
		mg_keep_name(walk, position, &entry);
		walk->here = entry.parent;
	}
	walk->filled = block * MG_BLOCK;
	return 0;
}

/* Begin the name at position `todo`. */
static __always_inline void mg_next_name(struct mg_lookup *walk)
{
	__u32 at = walk->todo & (MG_BLOCK - 1);

	if ((__u32)(walk->todo - walk->filled) >= MG_BLOCK)
		mg_keep_block(walk);
	walk->begins = 1;
	walk->left = walk->lengths[at];
	walk->name = walk->chain[at];
	if (!walk->left || !walk->name)
		mg_refuse(walk, MG_DETAIL_DETACHED);
}

/* --- places that are mounted ---------------------------------------------------------------------------------- */

/* A place that is mounted somewhere: does this pass's name begin here? */
static __always_inline void mg_meet(struct mg_lookup *walk, const struct mg_place *place, const struct mg_place *other)
{
	if (walk->which >= walk->met && walk->which - walk->met < place->names) {
		walk->state = other ? other->state : place->state;
		walk->known = 1;
		walk->settled = walk->dull = 0;
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

	if (bytes > MG_LONGEST_NAME)
		return 0;
	key->left = bytes;
	if (bytes > MG_BRANCH_BYTES)
		bytes = MG_BRANCH_BYTES;
	__builtin_memset(key->bytes, 0, sizeof(key->bytes));
	if (bpf_probe_read_kernel(key->bytes, bytes, (void *)(walk->name + from)))
		return 0;
	return bpf_map_lookup_elem(&mg_branches, key);
}

struct mg_stepping {
	struct mg_lookup *walk;
	struct mg_branch_key key;
	__u32 from;
};

/* A piece of a long name that is not its last one. */
static long mg_pass_piece(__u32 index, void *data)
{
	struct mg_stepping *stepping = data;
	struct mg_place *place;

	if (stepping->walk->left - stepping->from <= MG_BRANCH_BYTES)
		return 1;
	place = mg_next_piece(stepping->walk, &stepping->key, stepping->from);
	stepping->key.node = place ? place->node : 0;
	stepping->from += MG_BRANCH_BYTES;
	return !place;
}

/* The current name may be a step on the way to a mount root. Where this pass's name of the object begins at it, its state
 * is known, and nothing of the name is left to be fed.
 */
__noinline int mg_branch(struct mg_lookup *walk)
{
	struct mg_stepping stepping = { .walk = walk };
	struct mg_place *place, *other = 0;
	__u16 met;

	if (!walk)
		return 0;
	stepping.key.policy = walk->policy;
	stepping.key.device = walk->device;
	stepping.key.node = walk->node;
	walk->node = 0;
	if (walk->left > MG_BRANCH_BYTES)
		bpf_loop(MG_LONGEST_NAME / MG_BRANCH_BYTES, mg_pass_piece, &stepping, 0);
	place = stepping.key.node ? mg_next_piece(walk, &stepping.key, stepping.from) : 0;
	if (!place)
		return 0;
	if (walk->which > walk->met && walk->which - walk->met < place->names) {
		stepping.key.name = walk->which - walk->met;
		other = bpf_map_lookup_elem(&mg_branches, &stepping.key);
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

/* A word of the lines that are lists; 0 where there is none. */
__noinline int mg_word(__u32 policy, __u32 from, __u32 number)
{
	struct mg_line *line = mg_line_at(policy, from + number / 4);

	return line ? line->words[number & 3] : 0;
}

/* Place of the highest bit, from 1; 0 for none. */
__noinline int mg_highest(__u64 bits)
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

/* Add what the name says of all that lies below it. */
static __always_inline void mg_conclude_below(const struct mg_lookup *walk, struct mg_seen *seen)
{
	__u64 below = seen->below;
	__u32 index;

#pragma unroll
	for (index = 0; index < 3; index++)
		below = mg_mix(below, walk->state.ranks[index]);
#pragma unroll
	for (index = 0; index < MG_FACTORS_LIMIT; index++)
		below = mg_mix(below, walk->state.at[index]);
	seen->below = mg_mix(mg_mix(mg_mix(below, walk->state.matched), walk->state.excepted), walk->node);
}

/* Add what one name of the object says. A rule that protects wins over what any name allows. */
static __always_inline void mg_conclude(struct mg_lookup *walk, struct mg_seen *seen)
{
	struct mg_policy *policy = mg_policy_of(walk->policy);
	__u32 rank, guard, index;
	__u64 guards;

	if (!policy) {
		mg_refuse(walk, MG_DETAIL_NO_POLICY);
		return;
	}
	for (index = 0; index < 3; index++) {
		rank = walk->state.ranks[index];
		guards = walk->state.matched & ~walk->state.excepted & policy->guard_masks[index];
		if (guards) {
			guard = mg_word(walk->policy, policy->guards, mg_highest(guards) - 1);
			if (!guard)
				mg_refuse(walk, MG_DETAIL_NO_POLICY);
			if (guard > rank)
				rank = guard;
		}
		if (rank && rank < policy->protect_from) {
			seen->allowed |= 1 << index;
			continue;
		}
		if (rank) {
			seen->protected |= 1 << index;
			seen->pinned = 1;
		}
		if (walk->asked >> index & 1 && (rank || !seen->rules[index]))
			seen->rules[index] = mg_word(walk->policy, policy->rules, rank);
	}
	if (walk->compares)
		mg_conclude_below(walk, seen);
	/* What is mounted elsewhere and lies below is known by its way there. */
	if (walk->state.pinned || walk->node)
		seen->pinned = 1;
}

/* A pass has come to its end. 1: it was the last one; 0: another one is needed, for another name. */
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
	return 1;
}

struct mg_looking {
	struct mg_lookup *walk;
	struct mg_seen *seen;
};

/* Was nothing moved since the way was measured? */
static __always_inline int mg_is_stable(struct mg_lookup *walk)
{
	__u32 sequence = walk->sequence;
	__u8 detail = walk->detail;
	__u8 moving = walk->moving;

	if (walk->careful) {
		mg_measure(walk);
		moving |= walk->moving;
	} else {
		walk->sequence = mg_sequence();
	}
	walk->detail = detail;
	walk->done = 1;
	return !moving && walk->sequence == sequence;
}

/* All passes have come to their end. If something that they read was moved meanwhile, they begin anew; where something is
 * always renamed somewhere, only what is renamed on the way to this object's root counts.
 */
static __always_inline int mg_end(struct mg_lookup *walk, struct mg_seen *seen)
{
	if (mg_is_stable(walk))
		return 1;
	walk->detail = MG_DETAIL_UNSTABLE;
	walk->which = 0;
	walk->careful = 1;
	__builtin_memset(seen, 0, sizeof(*seen));
	if (++walk->tries < MG_MOST_TRIES)
		walk->done = 0;
	return walk->done;
}

/* The last name said nothing to any factor; so neither does one that begins with a byte that is no edge of such states. */
static __always_inline int mg_is_quiet(const struct mg_lookup *walk)
{
	return (walk->settled | walk->dull) == (1 << walk->factors) - 1;
}

/* Pass over names that say nothing. A function of its own, for the stack of who calls it. */
__noinline int mg_pass_over(struct mg_lookup *walk)
{
	struct mg_policy *policy;
	__u32 turn, next;

	if (!walk)
		return 0;
	policy = mg_policy_of(walk->policy);
	if (!policy)
		return 0;
#pragma clang loop unroll(disable)
	for (turn = 0; turn < MG_BLOCK; turn++) {
		next = (__u32)walk->todo - 1;
		if (next - walk->filled >= MG_BLOCK)
			break;
		if (mg_tells(walk, policy, next))
			return 0;
		walk->todo = next;
	}
	next = walk->todo;
	if (next && next == walk->filled && next <= MG_NOTED) /* the bits below it */
		walk->todo = mg_highest(walk->telling & ~0ull >> ((MG_NOTED - next) & (MG_NOTED - 1)));
	return 0;
}

/* The next piece of a name: at most MG_CHUNK bytes of one component. */
static long mg_feed(__u32 index, void *data)
{
	struct mg_looking *looking = data;
	struct mg_lookup *walk = looking->walk;
	__u32 bytes;

	if (!walk->going) {
		if (!walk->which)
			mg_measure(walk);
		if (!walk->done)
			mg_at_root(walk);
		walk->going = 1;
	}
	if (!walk->left && !walk->node && mg_is_quiet(walk) && !walk->done)
		mg_pass_over(walk);
	if (walk->done || (!walk->left && !walk->todo))
		return walk->halts || (mg_end_pass(walk, looking->seen) && mg_end(walk, looking->seen));
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
	if (MG_READS_FREELY) { /* what lies behind the name is read and not looked at */
		walk->words[0] = MG_READ(struct list_head, walk->name, next);
		walk->words[1] = MG_READ(struct list_head, walk->name, prev);
	} else if (bpf_probe_read_kernel(walk->chunk, bytes, (void *)walk->name)) {
		mg_refuse(walk, MG_DETAIL_DETACHED);
		return 0;
	}
	walk->bytes = bytes;
	walk->name += bytes;
	walk->left -= bytes;
	if (walk->known) {
		mg_feed_chunk(walk);
		if (walk->waiting)
			mg_feed_rest(walk);
		if (mg_is_quiet(walk))
			walk->left = 0;
	}
	walk->begins = 0;
	return 0;
}

/* The device of a superblock for `mg_roots`: its own, or for what the tree mounted in a user namespace of its own, what it
 * is judged like. Others of those have none: the number of one that is gone is given to the next.
 */
static __always_inline __u32 mg_device(__u64 sb)
{
	__u32 device = MG_READ(struct super_block, sb, s_dev);

	if (!MG_READ(struct user_namespace, MG_READ(struct super_block, sb, s_user_ns), level))
		return device;
	switch (MG_READ(struct super_block, sb, s_magic)) {
	case MG_MAGIC_TMPFS:
		return MG_KINDRED_TMPFS;
	case MG_MAGIC_PROC:
		return MG_KINDRED_PROC;
	case MG_MAGIC_DEVPTS:
		return MG_KINDRED_DEVPTS;
	}
	return 0;
}

/* Feed what is to be fed. A function of its own, so that the verifier follows it once. */
__noinline int mg_feed_all(struct mg_lookup *walk, struct mg_seen *seen)
{
	struct mg_looking looking = { .walk = walk, .seen = seen };

	if (walk && seen)
		bpf_loop(MG_MOST_STEPS, mg_feed, &looking, 0);
	return 0;
}

/* 0: there is no policy. A function of its own, as there is little stack where it is called. */
__noinline int mg_begin(struct mg_lookup *walk)
{
	struct mg_policy *head;
	__u64 sb;

	if (!walk)
		return 0;
	head = mg_policy_of(walk->policy);
	if (!head || !head->factors)
		return 0;
	sb = MG_READ(struct dentry, walk->leaf, d_sb);
	walk->factors = head->factors;
	walk->careful = !&rename_lock;
	walk->device = mg_device(sb);
	walk->root = MG_READ(struct super_block, sb, s_root);
	return 1;
}

/* Judge the object that a dentry stands for; it need not exist yet. In `seen`: what is allowed, and the rules of those
 * accesses in `asked` that are not. With MG_COMPARES in it `below` is filled, too.
 */
__noinline int mg_look_up(__u32 policy, __u64 object, __u32 asked, struct mg_seen *seen)
{
	struct mg_lookup walk = { .leaf = object, .policy = policy, .asked = asked, .compares = !!(asked & MG_COMPARES) };

	if (!seen)
		return 0;
	__builtin_memset(seen, 0, sizeof(*seen));
	seen->detail = MG_DETAIL_NO_POLICY;
	if (!mg_begin(&walk))
		return 0;
	mg_feed_all(&walk, seen);
	seen->device = walk.device;
	seen->detail = walk.done ? walk.detail : MG_DETAIL_DEEP;
	seen->allowed &= ~seen->protected;
	if (seen->detail)
		seen->allowed = 0;
	return 0;
}

/* Judge an object in the folder that a walk has come to. 0: it cannot be said here. */
static __always_inline int mg_look_below(struct mg_lookup *walk, __u64 object, struct mg_seen *seen)
{
	__u32 length = MG_READ(struct dentry, object, d_name.len);

	if (!length || length > MG_LONGEST_NAME || object == walk->leaf)
		return 0;
	__builtin_memset(seen, 0, sizeof(*seen));
	walk->left = length;
	walk->name = MG_ADDRESS(struct dentry, object, d_name.name);
	walk->begins = 1;
	walk->going = 1;
	walk->which = 0;
	mg_feed_all(walk, seen);
	if (walk->done || walk->left)
		return 0;
	mg_end_pass(walk, seen);
	seen->device = walk->device;
	seen->allowed &= ~seen->protected;
	return !walk->done;
}

/* Judge two objects of one folder for MG_WRITE by one walk to the folder, which the caller holds: what is in it has its name
 * meanwhile. 0: each must be looked up by itself: they lie apart, or something is odd about one of them, which is told there.
 */
__noinline int mg_look_up_both(__u32 policy, __u64 one, __u64 other, struct mg_seen *seen, struct mg_seen *seen_other)
{
	struct mg_lookup walk = { .leaf = mg_parent(one), .policy = policy, .asked = MG_WRITE, .halts = 1,
				  .compares = 1 };

	if (!seen || !seen_other || mg_parent(other) != walk.leaf || !mg_begin(&walk))
		return 0;
	mg_feed_all(&walk, seen);
	/* Each may have names that the other does not have where parts are mounted below. */
	if (walk.done || walk.left || walk.todo || walk.node || walk.met != 1 || walk.depth >= MG_DEEPEST_PATH)
		return 0;
	walk.folder.state = walk.state;
	walk.folder.settled = walk.settled;
	if (!mg_look_below(&walk, one, seen))
		return 0;
	walk.state = walk.folder.state;
	walk.settled = walk.folder.settled;
	return mg_look_below(&walk, other, seen_other) && mg_is_stable(&walk);
}

#endif
