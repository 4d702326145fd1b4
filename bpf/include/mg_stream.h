/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What processes of a tree send to one another in JSON-RPC: over pipes, unix stream sockets, and TCP on loopback. A record, never a
 * verdict: the bytes are read from the sender's memory when the call has ended, and another thread may have changed them meanwhile.
 *
 * A connection is looked at when something is sent on it, until its first bytes show what it is. From then on, all of it is sent on
 * to user space, or nothing. Only the sending side is read, so that each message is seen once; but for what comes over loopback from
 * outside of the session, whose sender nobody looks at: that is read where it is received. Where servers have to start by way of
 * a gate the first question of MCP is looked for at the end where it is read, too: who reads it is held.
 */
#ifndef MG_STREAM_H
#define MG_STREAM_H

#include "mg_entry.h"
#include "mg_own_ends.h"
#include "mg_scratch.h"

enum {
	MG_STREAM_BYTES = 1 << 20,	/* of one call; what is beyond is told as lost */
	MG_STEPS = 2048,		/* vectors and pieces of one call */
	MG_HEAD_BYTES = 1024,		/* from which a connection is known */
	MG_TRIES = 64,			/* sends that show nothing, before a connection is ignored */
	MG_GATHERED = 4096,		/* steps to the first bytes: three for each vector at most, of which a call takes 1024 */
	MG_UNSEEN = 16,			/* of MG_TRIES, for who was stopped though nobody knows what it has read */
	MG_FIFO = 0x1000,
	MG_SOCK = 0xc000,
	MG_TYPE = 0xf000,
	MG_SOCK_STREAM = 1,
	MG_INET = 2,
	MG_INET6 = 10,
	MG_UNIX = 1,
	MG_SIGKILL = 9,
	MG_SIGCONT = 18,
	MG_SIGSTOP = 19,
	MG_MSG_OOB = 1,
	MG_MSG_PEEK = 2,
	MG_MSG_TRUNC = 0x20,
	MG_MSG_ERRQUEUE = 0x2000,
	MG_READ_SIDE = 1 << 30,	/* in mg_stream_key.slot */
	MG_TO_VALUE = 12,	/* from the name `method` to the first letters of its value */
};

/* The first arguments of the call that a thread is in, one by one. */
#if defined(__TARGET_ARCH_arm64)
static __always_inline __u64 mg_first(void *registers)
{
	return BPF_CORE_READ((struct pt_regs___arm64 *)registers, orig_x0);
}

static __always_inline __u64 mg_second(void *registers)
{
	return BPF_CORE_READ((struct pt_regs___arm64 *)registers, regs[1]);
}

static __always_inline __u64 mg_third(void *registers)
{
	return BPF_CORE_READ((struct pt_regs___arm64 *)registers, regs[2]);
}

static __always_inline __u64 mg_fourth(void *registers)
{
	return BPF_CORE_READ((struct pt_regs___arm64 *)registers, regs[3]);
}
#else
static __always_inline __u64 mg_word_at(void *address)
{
	__u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), address);
	return word;
}

static __always_inline __u64 mg_first(void *registers)
{
	return mg_word_at(&((struct pt_regs *)registers)->rdi);
}

static __always_inline __u64 mg_second(void *registers)
{
	return mg_word_at(&((struct pt_regs *)registers)->rsi);
}

static __always_inline __u64 mg_third(void *registers)
{
	return mg_word_at(&((struct pt_regs *)registers)->rdx);
}

static __always_inline __u64 mg_fourth(void *registers)
{
	return mg_word_at(&((struct pt_regs *)registers)->r10);
}
#endif

enum mg_stage { MG_UNDECIDED = 0, MG_SPEAKS = 1, MG_IGNORED = 2 };

enum mg_guess { MG_NO = 0, MG_YES = 1, MG_MORE = 2 };

/* What a first message is: it names a method, one with which a client of MCP begins, or is an answer; and it is there to its end. */
enum mg_says { MG_NAMES_METHOD = 1, MG_ASKS = 2, MG_ANSWERS = 4, MG_IS_WHOLE = 8 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct socket___end {
	struct file *file;
	struct sock *sk;
};

struct in6_addr___mg {
	__u8 bytes[16];
};

struct sock_common___tcp {
	unsigned short skc_family;
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;	/* network byte order */
	__u16 skc_num;
	struct {
		__u8 bytes[16];
	} skc_v6_daddr, skc_v6_rcv_saddr;
};

struct sock___tcp {
	struct sock_common___tcp __sk_common;
	struct socket___end *sk_socket;
};

struct unix_sock___pair {
	struct sock___tcp *peer;
};

#pragma clang attribute pop

struct mg_stream_key {
	__u64 own;
	__u32 device;
	__u32 slot;
};

struct mg_stream {
	__u64 offset;
	__u32 state;
	__u16 tries;
	__u16 held;	/* bytes in mg_heads that were sent before the connection is known */
	__u8 asks;	/* the agent asks on it, in MCP */
	__u8 ended;	/* who sends on it was ended */
	__u8 question;	/* somebody asks on it, in MCP */
	__u8 judged;	/* of an end where is read: who has it was held for a question */
	__u32 sender;	/* the process that sent last */
};

/* The oldest make room; a connection that is forgotten is looked at anew, and its stream begins anew. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct mg_stream_key);
	__type(value, struct mg_stream);
} mg_streams SEC(".maps");

struct mg_head_bytes {
	__u8 bytes[MG_HEAD_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 512);
	__type(key, struct mg_stream_key);
	__type(value, struct mg_head_bytes);
} mg_heads SEC(".maps");

/* Ports on which a request was seen: an answer alone does not show what it belongs to. */
struct mg_asked_key {
	__u32 slot;
	__u16 port;
	__u16 far_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct mg_asked_key);
	__type(value, __u32);
} mg_asked SEC(".maps");

MG_PER_SLOT(mg_messages, struct mg_ring);

/* What is sent, as far as it is not told yet. */
struct mg_cursor {
	__u64 message;	/* struct mmsghdr */
	__u64 vector;	/* struct iovec */
	__u64 address;
	__u64 length;	/* at the address */
	__u64 left;	/* of this message */
	__u64 offset;
	__u64 budget;
	__u64 skipped;
	__u32 messages;
	__u32 vectors;
	__u32 last;	/* the last byte that was skipped */
	__u32 gathered;	/* bytes in the buffer */
};

/* In the claimed buffer, where other records have the path that they build: the stack would be too small on older kernels.
 * Functions that are not static are checked by the verifier once each.
 */
struct mg_work {
	struct mg_cursor cursor;
	struct mg_cursor ahead;	/* the same, on its way through the first bytes */
};

static __always_inline struct mg_work *mg_work_in(struct mg_scratch *scratch)
{
	return (void *)scratch->walk;
}

/* Count records that tell nothing any more; whoever reads the next one is told. */
static __always_inline void mg_lose_pieces(const struct mg_session *session, __u32 fresh, __u32 taken)
{
	struct mg_counters *counters = mg_count(session);

	if (!counters)
		return;
	__sync_fetch_and_add(&counters->messages_lost, fresh);
	__sync_fetch_and_add(&counters->messages_pending, fresh + taken);
}

/* Send the record in the buffer; a full ring gives the taken losses back and adds this one. */
__noinline int mg_send_piece(const struct mg_session *session, struct mg_scratch *scratch, __u64 length)
{
	struct mg_message *record;
	struct mg_counters *counters;
	void *ring;
	__u64 size;

	if (!session || !scratch || length > MG_PIECE_BYTES)
		return 0;
	record = (void *)scratch->record;
	record->head.lost_before = 0;
	counters = mg_count(session);
	if (counters)
		__sync_fetch_and_add(&counters->said, 1);
	if (counters && counters->messages_pending)
		record->head.lost_before = __sync_lock_test_and_set(&counters->messages_pending, 0);
	ring = mg_of_slot(&mg_messages, session->slot);
	size = sizeof(*record) + length;
	barrier_var(size);
	size &= MG_LONGEST_RECORD;
	if (!ring || bpf_ringbuf_output(ring, record, size, 0))
		mg_lose_pieces(session, 1, record->head.lost_before);
	return 0;
}

/* The next vector, or of several messages the next one; 1: there is none. */
__noinline int mg_next(struct mg_cursor *cursor)
{
	__u64 words[8] = {};

	if (!cursor)
		return 1;
	if (!cursor->left) {
		/* struct msghdr, and the bytes that were sent of it */
		if (!cursor->messages || bpf_probe_read_user(words, sizeof(words), (void *)cursor->message))
			return 1;
		cursor->messages--;
		cursor->message += sizeof(words);
		cursor->vector = words[2];
		cursor->vectors = words[3];
		cursor->left = (__u32)words[7];
		cursor->length = 0;
		return 0;
	}
	if (!cursor->vectors || bpf_probe_read_user(words, 2 * sizeof(__u64), (void *)cursor->vector))
		return 1;
	cursor->vectors--;
	cursor->vector += 2 * sizeof(__u64);
	cursor->address = words[0];
	cursor->length = words[1];
	return 0;
}

static __always_inline void mg_pass(struct mg_cursor *cursor, __u64 length)
{
	cursor->address += length;
	cursor->length -= length;
	cursor->left -= length;
	cursor->offset += length;
}

static __always_inline __u64 mg_here(const struct mg_cursor *cursor)
{
	return cursor->length < cursor->left ? cursor->length : cursor->left;
}

/* Put bytes of the program into the buffer, `at` bytes behind the fixed part; not 0: they cannot be read. */
__noinline int mg_copy(struct mg_scratch *scratch, __u64 address, __u64 length, __u32 at)
{
	if (!scratch || length > MG_PIECE_BYTES || at > MG_HEAD_BYTES)
		return 1;
	return bpf_probe_read_user(&scratch->record[(sizeof(struct mg_message) + at) & MG_RECORD_MASK], length,
				   (void *)address) != 0;
}

/* Pass by what is beyond the bound, but for its last byte. */
static __always_inline int mg_skip(struct mg_cursor *cursor, __u64 length)
{
	char last = 0;

	bpf_probe_read_user(&last, 1, (void *)(cursor->address + length - 1));
	cursor->last = last;
	cursor->skipped += length;
	mg_pass(cursor, length);
	return 0;
}

/* One piece, or one vector; 1: all is sent. */
__noinline int mg_step_sending(const struct mg_session *session, struct mg_scratch *scratch)
{
	struct mg_message *record;
	struct mg_cursor *cursor;
	__u64 length;

	if (!session || !scratch)
		return 1;
	cursor = &mg_work_in(scratch)->cursor;
	length = mg_here(cursor);
	if (!length)
		return mg_next(cursor);
	if (!cursor->budget)
		return mg_skip(cursor, length);
	if (length > cursor->budget)
		length = cursor->budget;
	if (length > MG_PIECE_BYTES)
		length = MG_PIECE_BYTES;
	record = (void *)scratch->record;
	record->offset = cursor->offset;
	record->length = length;
	record->lost = 0;
	if (mg_copy(scratch, cursor->address, length, 0)) {
		record->length = 0;
		record->lost = length;
	}
	mg_send_piece(session, scratch, record->length);
	cursor->budget -= length;
	mg_pass(cursor, length);
	return 0;
}

struct mg_sending {
	const struct mg_session *session;
	struct mg_scratch *scratch;
};

static long mg_send_on(__u32 index, void *data)
{
	struct mg_sending *sending = data;

	return mg_step_sending(sending->session, sending->scratch) != 0;
}

/* --- what a connection is, by its first bytes --- */

enum mg_found { MG_FOUND_MCP = 1, MG_FOUND_EVENTS = 2 };

struct mg_reading {
	__u64 window;	/* the last eight bytes, in small letters */
	__u64 name;
	__u32 at;	/* where JSON has got to: 0 nothing, 1 an object, 2 in its first name, 3 the name is known */
	__u8 first;
	__u8 other;	/* it begins with something else */
	__u8 found;	/* enum mg_found, or-ed */
	__u8 line;	/* a line has ended */
	__u8 says;	/* enum mg_says, or-ed */
	__u8 depth;	/* of objects and lists */
	__u8 quoted;
	__u8 escaped;
	__u8 begins;	/* it is `initialize`, which other protocols have, too */
	__u8 dated;	/* its revision is a date, as those of MCP are: a year */
	__u32 value;	/* where the value of `method` can begin */
	__u32 revision;	/* where `protocolVersion` was read; the version of a client may begin as a year does */
};

#define MG_WORD(a, b, c, d, e, f, g, h) \
	((__u64)(a) << 56 | (__u64)(b) << 48 | (__u64)(c) << 40 | (__u64)(d) << 32 | (__u64)(e) << 24 | (__u64)(f) << 16 | \
	 (__u64)(g) << 8 | (__u64)(h))

static __always_inline int mg_is_known_name(__u64 name)
{
	return name == MG_WORD(0, 'j', 's', 'o', 'n', 'r', 'p', 'c') || name == MG_WORD(0, 0, 0, 0, 0, 0, 'i', 'd') ||
	       name == MG_WORD(0, 0, 'm', 'e', 't', 'h', 'o', 'd') || name == MG_WORD(0, 0, 'p', 'a', 'r', 'a', 'm', 's') ||
	       name == MG_WORD(0, 0, 'r', 'e', 's', 'u', 'l', 't') || name == MG_WORD(0, 0, 0, 'e', 'r', 'r', 'o', 'r');
}

static __always_inline void mg_read_json(struct mg_reading *reading, __u8 byte)
{
	int blank = byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n';

	switch (reading->at) {
	case 0:
		if (byte == '{')
			reading->at = 1;
		else if (!blank && byte != '[')
			reading->other = 1;
		return;
	case 1:
		if (byte == '"')
			reading->at = 2;
		else if (!blank)
			reading->other = 1;
		return;
	case 2:
		if (byte == '"')
			reading->at = 3;
		else
			reading->name = reading->name << 8 | byte;
		return;
	}
}

static __always_inline void mg_nest(struct mg_reading *reading, __u32 byte)
{
	if (reading->escaped) {
		reading->escaped = 0;
	} else if (reading->quoted) {
		reading->escaped = byte == '\\';
		reading->quoted = byte != '"';
	} else if (byte == '"') {
		reading->quoted = 1;
	} else if (byte == '{' || (byte == '[' && reading->depth)) {	/* several messages in one stand in a list of their own */
		reading->depth++;
	} else if ((byte == '}' || byte == ']') && reading->depth) {
		reading->depth--;
	}
}

/* Of what follows the first message it only counts whether it asks. */
static __always_inline void mg_say(struct mg_reading *reading, __u8 what)
{
	if (!reading->line || what == MG_ASKS)
		reading->says |= what;
}

/* What a message says, by the names of the outermost object: a text inside of it may hold the same words. */
__noinline int mg_read_names(struct mg_reading *reading, __u32 index)
{
	__u64 window, seven;

	if (!reading)
		return 0;
	window = reading->window;
	seven = window & 0xffffffffffffffull;
	if (window == MG_WORD('o', 'l', 'v', 'e', 'r', 's', 'i', 'o'))
		reading->revision = index;
	if ((window == MG_WORD('i', 'o', 'n', '"', ':', '"', '2', '0') || window == MG_WORD('o', 'n', '"', ':', ' ', '"', '2', '0')) &&
	    index - reading->revision <= 7)
		reading->dated = 1;
	if (reading->begins && reading->dated)
		mg_say(reading, MG_ASKS);
	if (reading->depth != 1)
		return 0;
	if (!reading->quoted && window == MG_WORD('"', 'm', 'e', 't', 'h', 'o', 'd', '"')) {
		mg_say(reading, MG_NAMES_METHOD);
		reading->value = index;
	}
	if (!reading->quoted && (window == MG_WORD('"', 'r', 'e', 's', 'u', 'l', 't', '"') ||
				 seven == MG_WORD(0, '"', 'e', 'r', 'r', 'o', 'r', '"')))
		mg_say(reading, MG_ANSWERS);
	if (!reading->value || index - reading->value > MG_TO_VALUE)
		return 0;
	if (window == MG_WORD('"', 'i', 'n', 'i', 't', 'i', 'a', 'l'))
		reading->begins = 1;
	if (seven == MG_WORD(0, '"', 't', 'o', 'o', 'l', 's', '/') || window == MG_WORD('"', 'p', 'r', 'o', 'm', 'p', 't', 's') ||
	    window == MG_WORD('"', 'r', 'e', 's', 'o', 'u', 'r', 'c') || window == MG_WORD('"', 's', 'e', 'r', 'v', 'e', 'r', '/'))
		mg_say(reading, MG_ASKS);
	return 0;
}

/* The verifier knows nothing of what is read, so that it does not follow every text there can be. */
__noinline int mg_read_one(struct mg_reading *reading, __u32 index, __u32 byte)
{
	if (!reading)
		return 1;
	if (!index)
		reading->first = byte;
	if (!reading->other && reading->at < 3)
		mg_read_json(reading, byte);
	if (byte == '\n' && reading->at == 3) {
		reading->line = 1;
		reading->says |= MG_IS_WHOLE;
		reading->depth = reading->quoted = reading->escaped = reading->begins = reading->dated = 0;
		reading->value = 0;
	}
	reading->window = reading->window << 8 | (byte & 0xff) | 0x20;
	if ((reading->window & 0xffffffffffffffull) == MG_WORD(0, 'j', 's', 'o', 'n', 'r', 'p', 'c') ||
	    (reading->window & 0xffffffffffull) == MG_WORD(0, 0, 0, '*', 'm', 'c', 'p', '-'))
		reading->found |= MG_FOUND_MCP;
	if (reading->window == MG_WORD('e', 'v', 'e', 'n', 't', '-', 's', 't'))
		reading->found |= MG_FOUND_EVENTS;
	mg_nest(reading, byte & 0xff);
	mg_read_names(reading, index);
	return 0;
}

struct mg_look {
	struct mg_scratch *scratch;
	__u32 length;
	__u32 channel;
	struct mg_reading reading;
};

static __always_inline int mg_begins_http(const struct mg_reading *reading)
{
	return reading->first == 'P' || reading->first == 'G' || reading->first == 'H';
}

static long mg_read_byte(__u32 index, void *data)
{
	struct mg_look *look = data;

	if (index >= look->length || (look->reading.other && !(look->channel == MG_LOOPBACK && mg_begins_http(&look->reading))))
		return 1;
	mg_read_one(&look->reading, index, look->scratch->record[(sizeof(struct mg_message) + index) & MG_RECORD_MASK]);
	return 0;
}

/* What is known of a connection before its first bytes are looked at, or-ed. */
enum mg_known { MG_WAS_ASKED = 1, MG_IS_RECEIVED = 2 };

/* Is it HTTP as MCP uses it? Requests name a stream of events or hold JSON-RPC; answers follow requests. Who asked for what is received
 * was seen, mostly, and other servers (of models) answer in streams, too.
 */
static __always_inline enum mg_guess mg_guess_http(const struct mg_reading *reading, __u32 length, int known)
{
	__u32 found = reading->found;

	if (!mg_begins_http(reading))
		return MG_NO;
	if (reading->first == 'H' && known & MG_IS_RECEIVED)
		found &= MG_FOUND_MCP;
	if (found || (reading->first == 'H' && known & MG_WAS_ASKED))
		return MG_YES;
	return length < MG_HEAD_BYTES ? MG_MORE : MG_NO;
}

static __always_inline enum mg_guess mg_guess_of(const struct mg_reading *reading, __u32 length, int channel, int known)
{
	if (reading->other)
		return channel == MG_LOOPBACK ? mg_guess_http(reading, length, known) : MG_NO;
	if (reading->at < 3)
		return length < MG_HEAD_BYTES ? MG_MORE : MG_NO;
	if (mg_is_known_name(reading->name) || reading->found)
		return MG_YES;
	return length < MG_HEAD_BYTES && !reading->line ? MG_MORE : MG_NO;
}

/* What the first bytes in the buffer show, the very first of them in the second byte, and what they say in the third. */
__noinline int mg_look_at(struct mg_scratch *scratch, __u32 length, __u32 channel, __u32 known)
{
	struct mg_look look = { .scratch = scratch, .length = length, .channel = channel };

	if (!scratch)
		return MG_NO;
	bpf_loop(MG_HEAD_BYTES, mg_read_byte, &look, 0);
	return mg_guess_of(&look.reading, length, channel, known) | (__u32)look.reading.first << 8 |
	       (__u32)look.reading.says << 16;
}

/* Put one more vector of what is sent into the buffer; 1: there is no room, or nothing left. */
__noinline int mg_gather_one(struct mg_scratch *scratch)
{
	struct mg_cursor *cursor;
	__u64 length;

	if (!scratch)
		return 1;
	cursor = &mg_work_in(scratch)->ahead;
	if (cursor->gathered >= MG_HEAD_BYTES)
		return 1;
	length = mg_here(cursor);
	if (!length)
		return mg_next(cursor);
	if (length > MG_HEAD_BYTES - cursor->gathered)
		length = MG_HEAD_BYTES - cursor->gathered;
	if (mg_copy(scratch, cursor->address, length, cursor->gathered))
		return 1;
	cursor->gathered += length;
	mg_pass(cursor, length);
	return 0;
}

static long mg_gather_on(__u32 index, void *data)
{
	struct mg_sending *sending = data;

	return mg_gather_one(sending->scratch) != 0;
}

/* Put the first bytes of what is sent behind those that were held; returns how many there are then. */
__noinline int mg_gather(struct mg_scratch *scratch, const struct mg_head_bytes *head, __u32 held)
{
	struct mg_sending sending = { .scratch = scratch };
	struct mg_work *work;

	if (!scratch)
		return 0;
	work = mg_work_in(scratch);
	__builtin_memcpy(&work->ahead, &work->cursor, sizeof(work->ahead));
	work->ahead.gathered = 0;
	if (head && held && held <= MG_HEAD_BYTES) {
		bpf_probe_read_kernel(&scratch->record[sizeof(struct mg_message)], MG_HEAD_BYTES, head->bytes);
		work->ahead.gathered = held;
	}
	bpf_loop(MG_GATHERED, mg_gather_on, &sending, 0);
	return work->ahead.gathered;
}

/* --- one call --- */

struct mg_end {
	struct mg_stream_key key;
	__u64 far;
	__u64 sk;	/* of TCP */
	__u16 port;
	__u16 far_port;
	__u8 channel;
};

static __always_inline int mg_is_loopback(struct sock___tcp *sk, __u16 family)
{
	__u8 bytes[16];
	__u64 high, low;

	if (family == MG_INET)
		return (BPF_CORE_READ(sk, __sk_common.skc_daddr) & 0xff) == 127;
	if (bpf_core_read(bytes, sizeof(bytes), &sk->__sk_common.skc_v6_daddr))
		return 0;
	__builtin_memcpy(&high, bytes, 8);
	__builtin_memcpy(&low, bytes + 8, 8);
	return !high && (low == __builtin_bswap64(1) || (low & 0xffffffffffull) == 0x7fffff0000ull);
}

static __always_inline int mg_socket_end(struct file *file, struct mg_end *end)
{
	struct socket___end *socket = BPF_CORE_READ(file, private_data), *other;
	struct sock___tcp *sk = (void *)BPF_CORE_READ(socket, sk), *peer;
	__u16 family;

	if (!sk || BPF_CORE_READ((struct sock *)sk, sk_type) != MG_SOCK_STREAM)
		return 0;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family == MG_UNIX) {
		end->channel = MG_UNIX_STREAM;
		peer = BPF_CORE_READ((struct unix_sock___pair *)sk, peer);
		other = BPF_CORE_READ(peer, sk_socket);
		end->far = BPF_CORE_READ(other, file, f_inode, i_ino);
		return 1;
	}
	if ((family != MG_INET && family != MG_INET6) || !mg_is_loopback(sk, family))
		return 0;
	end->channel = MG_LOOPBACK;
	end->sk = (__u64)sk;
	end->port = BPF_CORE_READ(sk, __sk_common.skc_num);
	end->far_port = __builtin_bswap16(BPF_CORE_READ(sk, __sk_common.skc_dport));
	return 1;
}

/* Pipe or socket? 0: nothing that is looked at. */
static __always_inline __u16 mg_connection_type(struct inode *inode)
{
	__u16 type = MG_READ(struct inode, inode, i_mode) & MG_TYPE;

	return type == MG_FIFO || type == MG_SOCK ? type : 0;
}

/* Which connection a descriptor is an end of; 0: none of those that are looked at. */
__noinline int mg_end_of(__u64 fd, struct mg_end *end)
{
	struct file *file = mg_own_file((__u32)fd);
	struct inode *inode = (void *)MG_ADDRESS(struct file, file, f_inode);
	__u16 type = mg_connection_type(inode);

	if (!end || !type)
		return 0;
	end->key.own = MG_READ(struct inode, inode, i_ino);
	end->key.device = MG_READ(struct super_block, MG_READ(struct inode, inode, i_sb), s_dev);
	if (type == MG_SOCK)
		return mg_socket_end(file, end);
	end->channel = MG_PIPE;
	end->far = end->key.own;
	return 1;
}

/* Is it looked at for what is received there? */
static __always_inline int mg_is_reading(const struct mg_end *end)
{
	return !!(end->key.slot & MG_READ_SIDE);
}

/* The fixed part of a record in the buffer. */
__noinline int mg_fill_message(struct mg_scratch *scratch, const struct mg_end *end)
{
	struct file *input = mg_own_file(0), *output = mg_own_file(1);
	struct inode *inode = BPF_CORE_READ(input, f_inode);
	struct mg_message *record;

	if (!scratch || !end)
		return 0;
	record = (void *)scratch->record;
	__builtin_memset(record, 0, sizeof(*record));
	mg_fill_head(&record->head, MG_RECORD_MESSAGE);
	record->own = end->key.own;
	record->far = end->far;
	record->input = BPF_CORE_READ(inode, i_ino);
	record->device = end->key.device;
	record->input_device = BPF_CORE_READ(inode, i_sb, s_dev);
	record->port = mg_is_reading(end) ? end->far_port : end->port;
	record->far_port = mg_is_reading(end) ? end->port : end->far_port;
	record->channel = end->channel;
	record->fate = mg_is_reading(end) ? MG_HEARD : MG_GOES_ON;
	inode = BPF_CORE_READ(output, f_inode);
	record->output = BPF_CORE_READ(inode, i_ino) == end->key.own &&
			 BPF_CORE_READ(inode, i_sb, s_dev) == end->key.device;
	return 0;
}

/* Where it is noted that one of the two asks: who sends here, or who is sent to. */
static __always_inline struct mg_asked_key mg_asked_by(const struct mg_session *session, const struct mg_end *end, int sender)
{
	int own = sender != mg_is_reading(end);

	return (struct mg_asked_key){
		.slot = session->slot,
		.port = own ? end->port : end->far_port,
		.far_port = own ? end->far_port : end->port,
	};
}

static __always_inline int mg_known_of(const struct mg_session *session, const struct mg_end *end)
{
	struct mg_asked_key asked = mg_asked_by(session, end, 0);
	int known = mg_is_reading(end) ? MG_IS_RECEIVED : 0;

	return end->channel == MG_LOOPBACK && bpf_map_lookup_elem(&mg_asked, &asked) ? known | MG_WAS_ASKED : known;
}

/* What is sent to this end; 0: nothing was seen. */
static __noinline struct mg_stream *mg_sent_to(const struct mg_session *session, const struct mg_end *end)
{
	struct mg_stream_key key = { .own = end->far, .device = end->key.device, .slot = session->slot };

	return end->far ? bpf_map_lookup_elem(&mg_streams, &key) : 0;
}

/* Whether the agent asks this process in MCP: on what it has as standard input. */
static __noinline int mg_is_asked(const struct mg_session *session)
{
	const struct mg_stream *asking;
	struct mg_end end = {};

	if (!mg_end_of(0, &end))
		return 0;
	asking = mg_sent_to(session, &end);
	return asking && asking->asks;
}

/* Whether a first message is too long for what is looked at, and has not shown yet what it says. */
static __always_inline int mg_may_ask(__u32 says)
{
	return !(says & (MG_NAMES_METHOD | MG_ANSWERS | MG_IS_WHOLE));
}

/* An agent asks its servers by way of the gate, which is outside of the tree. So a process of the tree that answers it is a server
 * that it started by itself, and was not held when it read the question. It is ended before it can read another: user space would
 * come later. What merely looks like messages, as a file with some that a program is given to read, comes out as questions or not
 * at all.
 */
static __always_inline void mg_end_around(const struct mg_session *session, struct mg_stream *stream, __u32 says)
{
	const struct mg_counters *counters = mg_count(session);
	__u64 agent = counters ? counters->agent : 0;

	stream->question = says & MG_ASKS || mg_may_ask(says);
	if (!agent)
		return;
	if (bpf_get_current_pid_tgid() >> 32 == agent)
		stream->asks = !!(says & MG_ASKS);
	else if (says & MG_ANSWERS && !(says & MG_NAMES_METHOD) && mg_is_asked(session))
		stream->ended = !bpf_send_signal(MG_SIGKILL);
}

/* What is received at an end was left alone, perhaps: it is looked at again, as MCP is sent there. */
static __always_inline void mg_expect_answers(const struct mg_end *end)
{
	struct mg_stream_key key = end->key;
	struct mg_stream *receiving;

	key.slot |= MG_READ_SIDE;
	receiving = bpf_map_lookup_elem(&mg_streams, &key);
	if (!receiving || receiving->state != MG_IGNORED)
		return;
	receiving->tries = 0;
	receiving->state = MG_UNDECIDED;
}

/* All that follows is wanted. The first bytes are in the buffer: tell those that were held. */
static __always_inline void mg_begin(const struct mg_session *session, struct mg_scratch *scratch, struct mg_stream *stream,
				     const struct mg_end *end, __u8 first, __u32 says)
{
	struct mg_asked_key asked = mg_asked_by(session, end, 1);
	struct mg_message *record = (void *)scratch->record;
	__u32 held = stream->held, one = 1;

	stream->state = MG_SPEAKS;
	if (!mg_is_reading(end))
		mg_end_around(session, stream, says);
	stream->held = 0;
	if (end->channel == MG_LOOPBACK && first != 'H')
		bpf_map_update_elem(&mg_asked, &asked, &one, BPF_ANY);
	if (end->channel == MG_LOOPBACK && !mg_is_reading(end))
		mg_expect_answers(end);
	if (!held || held > MG_HEAD_BYTES)
		return;
	mg_fill_message(scratch, end);
	record->length = held;
	if (stream->ended)
		record->fate = MG_ENDED;
	mg_send_piece(session, scratch, held);
	stream->offset = held;
}

/* Look at the first bytes of a connection; 1: it speaks. */
static __always_inline int mg_decide(const struct mg_session *session, struct mg_scratch *scratch, struct mg_stream *stream,
				     const struct mg_end *end, __u64 sent)
{
	/* Looked up here: Linux 6.1 takes no argument of a function of its own for a key. */
	const struct mg_head_bytes *head = bpf_map_lookup_elem(&mg_heads, &end->key);
	__u32 known = mg_known_of(session, end), length, shown;

	/* The end of an earlier answer, cut where it looked like something else. */
	if (known == (MG_IS_RECEIVED | MG_WAS_ASKED) && head && head->bytes[0] != 'H')
		stream->held = 0;
	length = mg_gather(scratch, head, stream->held);
	shown = mg_look_at(scratch, length, end->channel, known);

	if ((shown & 0xff) == MG_YES) {
		mg_begin(session, scratch, stream, end, shown >> 8, shown >> 16);
		return 1;
	}
	/* What cannot be held whole would leave a hole. */
	if ((shown & 0xff) == MG_MORE && length == stream->held + sent) {
		bpf_map_update_elem(&mg_heads, &end->key, &scratch->record[sizeof(struct mg_message)], BPF_ANY);
		stream->held = length;
		return 0;
	}
	stream->held = 0;
	if (++stream->tries >= MG_TRIES)
		stream->state = MG_IGNORED;
	return 0;
}

/* Who reads there is held again, though much else was read before: unless somebody asks anew who counts, not who was held for a
 * question.
 */
static __always_inline void mg_expect_reader(const struct mg_session *session, const struct mg_end *end, int anew)
{
	struct mg_stream_key key = { .own = end->far, .device = end->key.device, .slot = session->slot | MG_READ_SIDE };
	struct mg_stream *reading = end->far ? bpf_map_lookup_elem(&mg_streams, &key) : 0;

	if (!reading || (reading->judged && !anew))
		return;
	reading->tries = 0;
	reading->state = MG_UNDECIDED;
	reading->judged = 0;
}

/* A question may come behind other messages, and the agent's behind one of somebody else. */
static __noinline int mg_look_for_question(const struct mg_session *session, struct mg_scratch *scratch, struct mg_stream *stream)
{
	const struct mg_counters *counters = mg_count(session);
	int is_agent;

	if (!counters || !counters->gated || stream->tries >= MG_TRIES)
		return 0;
	is_agent = bpf_get_current_pid_tgid() >> 32 == counters->agent;
	if (stream->question && (stream->asks || !is_agent))
		return 0;
	stream->tries++;
	if (!(mg_look_at(scratch, mg_gather(scratch, 0, 0), MG_PIPE, 0) >> 16 & MG_ASKS))
		return 0;
	stream->question = 1;
	stream->asks = is_agent;
	return 0;
}

/* What one process has sent says nothing of another one: whoever is about to be asked may have sent there itself. */
static __always_inline void mg_look_anew(const struct mg_session *session, struct mg_stream *stream, const struct mg_end *end)
{
	const struct mg_counters *counters = mg_count(session);
	__u32 sender = bpf_get_current_pid_tgid() >> 32;

	if (stream->sender == sender || !counters || !counters->gated || end->channel == MG_LOOPBACK)
		return;
	stream->sender = sender;
	stream->tries = 0;
	stream->held = 0;
	if (stream->state == MG_IGNORED)
		stream->state = MG_UNDECIDED;
	mg_expect_reader(session, end, sender == counters->agent ? !stream->asks : counters->gated == MG_GATED_FOR_ALL);
}

static __always_inline struct mg_stream *mg_stream_of(const struct mg_stream_key *key)
{
	struct mg_stream fresh = {}, *stream = bpf_map_lookup_elem(&mg_streams, key);

	if (stream)
		return stream;
	bpf_map_update_elem(&mg_streams, key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&mg_streams, key);
}

/* Tell what was sent; bytes that were too many, or that no memory of the sender holds, are told as lost. */
static __always_inline void mg_tell(const struct mg_session *session, struct mg_scratch *scratch, struct mg_stream *stream,
				    const struct mg_end *end, __u64 sent)
{
	struct mg_sending sending = { .session = session, .scratch = scratch };
	__u64 begin = __sync_fetch_and_add(&stream->offset, sent), told;
	struct mg_cursor *cursor = &mg_work_in(scratch)->cursor;
	struct mg_message *record = (void *)scratch->record;

	mg_fill_message(scratch, end);
	if (stream->ended)
		record->fate = MG_ENDED;
	cursor->offset = begin;
	cursor->budget = MG_STREAM_BYTES;
	bpf_loop(MG_STEPS, mg_send_on, &sending, 0);
	told = cursor->offset - begin - cursor->skipped;
	if (told >= sent)
		return;
	record->offset = begin + told;
	record->length = 0;
	record->lost = sent - told;
	record->ends_line = cursor->last == '\n';
	mg_send_piece(session, scratch, 0);
}

/* The bytes of all messages that a call sent. */
struct mg_summing {
	__u64 message;
	__u64 sum;
	__u32 messages;
};

static long mg_sum_message(__u32 index, void *data)
{
	struct mg_summing *summing = data;
	__u32 length = 0;

	if (index >= summing->messages || bpf_probe_read_user(&length, 4, (void *)(summing->message + index * 64ull + 56)))
		return 1;
	summing->sum += length;
	return 0;
}

/* What a call does with the bytes. */
enum mg_way { MG_NOTHING = 0, MG_ONE_PIECE = 1, MG_VECTORS = 2, MG_MESSAGE_HEADER = 3, MG_MESSAGE_HEADERS = 4, MG_MOVED = 5 };

static __always_inline enum mg_way mg_way_of(__u64 number)
{
	switch (number) {
	case __NR_write:
	case __NR_sendto:
		return MG_ONE_PIECE;
	case __NR_writev:
	case __NR_pwritev2:
		return MG_VECTORS;
	case __NR_sendmsg:
		return MG_MESSAGE_HEADER;
	case __NR_sendmmsg:
		return MG_MESSAGE_HEADERS;
	case __NR_splice:
	case __NR_vmsplice:
	case __NR_tee:
	case __NR_sendfile:
		return MG_MOVED;
	}
	return MG_NOTHING;
}

/* Put the cursor at the beginning of what was sent, by the second and third argument of the call; returns how many bytes. */
__noinline __u64 mg_point(struct mg_scratch *scratch, __u32 way, __u64 second, __u64 third, __u64 result)
{
	struct mg_summing summing = { .message = second, .messages = result };
	struct mg_cursor *cursor;
	__u64 header[4] = {};

	if (!scratch)
		return 0;
	cursor = &mg_work_in(scratch)->cursor;
	__builtin_memset(cursor, 0, sizeof(*cursor));
	cursor->left = result;
	switch (way) {
	case MG_ONE_PIECE:
		cursor->address = second;
		cursor->length = third;
		break;
	case MG_VECTORS:
		cursor->vector = second;
		cursor->vectors = third;
		break;
	case MG_MESSAGE_HEADER:
		bpf_probe_read_user(header, sizeof(header), (void *)second);
		cursor->vector = header[2];
		cursor->vectors = header[3];
		break;
	case MG_MESSAGE_HEADERS:
		cursor->message = second;
		cursor->messages = result;
		cursor->left = 0;
		bpf_loop(1024, mg_sum_message, &summing, 0);
		return summing.sum;
	}
	return result;
}

/* A buffer for what passed on a connection; null: none is free, and that much of the stream is lost. */
static __always_inline struct mg_scratch *mg_claim_or_lose(const struct mg_session *session, struct mg_stream *stream, __u64 bytes)
{
	struct mg_scratch *scratch = mg_claim_quietly();

	if (!scratch) {
		__sync_fetch_and_add(&stream->offset, bytes);
		mg_lose_pieces(session, 1, 0);
	}
	return scratch;
}

/* Is this read from, and was it made or opened within the tree? What the gate gives to its servers was not: in the tree nobody has
 * any capability left to be given, but in a user namespace of its own.
 */
static __always_inline int mg_is_of_tree(struct file *file)
{
	__u64 cred = MG_ADDRESS(struct file, file, f_cred);

	if (!(MG_READ(struct file, file, f_mode) & MG_FMODE_READ))
		return 0;
	return !MG_ADDRESS(struct cred, cred, cap_bset) || MG_READ(struct user_namespace, MG_READ(struct cred, cred, user_ns), level);
}

/* The agent is nobody's server. Where the session's first process stops, its user is taken to have stopped it, and all of the
 * session stops.
 */
static __always_inline int mg_is_never_held(const struct mg_counters *counters)
{
	__u64 current = bpf_get_current_pid_tgid() >> 32;

	return current == counters->agent || current == counters->first;
}

/* What is known of what was read: nothing that matters, it asks, or the one who sent it has to tell. */
enum mg_read { MG_READS_OTHER = 0, MG_READS_QUESTION = 1, MG_READS_UNSEEN = 2 };

/* Stop the current process before it can do anything with what it has read, and have user space say whether it goes on: who asks, and
 * whether this is data, is not known here. `length` bytes of it are in the buffer.
 */
static __always_inline void mg_hold(const struct mg_session *session, struct mg_scratch *scratch, const struct mg_end *end,
				    __u32 length, enum mg_read what)
{
	struct mg_message *record = (void *)scratch->record;
	const struct mg_stream *asking;

	if (bpf_send_signal(MG_SIGSTOP))
		return;
	mg_fill_message(scratch, end);
	record->length = length;
	record->fate = what == MG_READS_QUESTION ? MG_HELD : MG_HELD_UNSEEN;
	if (!mg_send_piece(session, scratch, length))
		return;
	/* Nobody will say so. */
	asking = mg_sent_to(session, end);
	bpf_send_signal(asking && asking->asks ? MG_SIGKILL : MG_SIGCONT);
}

/* Is what is sent to this socket for somebody of the tree? */
static __always_inline int mg_stays_in_tree(struct file *file)
{
	struct socket___end *socket = BPF_CORE_READ(file, private_data), *other;
	struct unix_sock___pair *own = (void *)BPF_CORE_READ(socket, sk);
	struct sock___tcp *peer = BPF_CORE_READ(own, peer);

	other = BPF_CORE_READ(peer, sk_socket);
	return mg_is_of_tree(BPF_CORE_READ(other, file));
}

/* The current process has sent what nobody can look at, or what is no message. An answer may be in it, to a question that it was not
 * seen to read: where it is asked, it is held as if it had read that.
 */
static __noinline int mg_hold_unread(const struct mg_session *session, __u64 fd, const struct mg_end *end)
{
	const struct mg_counters *counters = mg_count(session);
	struct file *file = mg_own_file((__u32)fd);
	const struct mg_stream *asking = 0;
	struct mg_end asked = {};
	struct mg_scratch *scratch;
	struct mg_stream *reading;

	if (!end || end->channel == MG_LOOPBACK || !counters || !counters->gated || mg_is_never_held(counters))
		return 0;
	if (end->channel == MG_UNIX_STREAM && !mg_stays_in_tree(file))
		return 0;
	if (end->channel == MG_UNIX_STREAM) {
		asked = *end;
		asking = mg_sent_to(session, &asked);
	}
	if (!asking || !asking->question) {
		if (!mg_end_of(0, &asked) || asked.channel == MG_LOOPBACK || !mg_is_of_tree(mg_own_file(0)))
			return 0;
		asking = mg_sent_to(session, &asked);
	}
	if (!asking || !asking->question)
		return 0;
	asked.key.slot = session->slot | MG_READ_SIDE;
	reading = mg_stream_of(&asked.key);
	if (!reading || reading->judged)
		return 0;
	scratch = mg_claim_quietly();
	if (!scratch)
		return 0;
	reading->judged = 1;
	mg_hold(session, scratch, &asked, 0, MG_READS_UNSEEN);
	mg_release(scratch);
	return 0;
}

/* A descriptor of the current task was sent to by a call that has ended well. */
static __noinline int mg_sent(const struct mg_session *session, void *registers, __u32 way, __u64 fd, __u64 result)
{
	struct mg_end end = {};
	struct mg_scratch *scratch;
	struct mg_stream *stream;
	__u64 sent;

	if (!mg_end_of(fd, &end))
		return 0;
	end.key.slot = session->slot;
	stream = mg_stream_of(&end.key);
	if (!stream)
		return 0;
	mg_look_anew(session, stream, &end);
	if (stream->state == MG_IGNORED || (way == MG_MOVED && stream->state != MG_SPEAKS))
		return mg_hold_unread(session, fd, &end);
	scratch = mg_claim_or_lose(session, stream, result);
	if (!scratch)
		return 0;
	sent = mg_point(scratch, way, mg_second(registers), mg_third(registers), result);
	if (stream->state == MG_SPEAKS && way != MG_MOVED && end.channel != MG_LOOPBACK)
		mg_look_for_question(session, scratch, stream);
	if (stream->state == MG_SPEAKS || mg_decide(session, scratch, stream, &end, sent))
		mg_tell(session, scratch, stream, &end, sent);
	mg_release(scratch);
	return way == MG_MOVED || stream->state != MG_SPEAKS ? mg_hold_unread(session, fd, &end) : 0;
}

/* --- what is received --- */

static __always_inline enum mg_way mg_way_of_reading(__u64 number)
{
	switch (number) {
	case __NR_read:
	case __NR_recvfrom:
		return MG_ONE_PIECE;
	case __NR_readv:
	case __NR_preadv2:
		return MG_VECTORS;
	case __NR_recvmsg:
		return MG_MESSAGE_HEADER;
	case __NR_recvmmsg:
		return MG_MESSAGE_HEADERS;
	}
	return MG_NOTHING;
}

static __always_inline __u64 mg_flags_of_reading(void *registers, __u64 number)
{
	switch (number) {
	case __NR_recvfrom:
	case __NR_recvmmsg:
		return mg_fourth(registers);
	case __NR_recvmsg:
		return mg_third(registers);
	}
	return 0;
}

/* Is the other end of a connection on loopback the session's own? */
static __always_inline int mg_is_within(const struct mg_session *session, const struct mg_end *end)
{
	struct mg_own_end other = { .slot = session->slot, .port = end->far_port, .far_port = end->port };
	struct sock___tcp *sk = (void *)end->sk;
	__u32 words[4] = {};

	other.net = mg_net_of((struct sock *)sk);
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == MG_INET) {
		other.address = BPF_CORE_READ(sk, __sk_common.skc_daddr);
		other.far_address = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
	} else {
		bpf_core_read(words, sizeof(words), &sk->__sk_common.skc_v6_daddr);
		other.address = words[3];
		bpf_core_read(words, sizeof(words), &sk->__sk_common.skc_v6_rcv_saddr);
		other.far_address = words[3];
	}
	return !!bpf_map_lookup_elem(&mg_own_ends, &other);
}

/* What the current task has received over loopback from outside of the session, or moved on unread. */
static __noinline int mg_heard(const struct mg_session *session, void *registers, __u64 number, struct mg_end *end, __u64 result)
{
	__u64 flags = mg_flags_of_reading(registers, number), got;
	enum mg_way way = mg_way_of_reading(number);
	struct mg_scratch *scratch;
	struct mg_stream *stream;

	/* No part of the stream, or one that is received again. */
	if (flags & (MG_MSG_OOB | MG_MSG_PEEK | MG_MSG_ERRQUEUE))
		return 0;
	end->key.slot = session->slot | MG_READ_SIDE;
	stream = mg_stream_of(&end->key);
	if (!stream || stream->state == MG_IGNORED || (way == MG_NOTHING && stream->state != MG_SPEAKS))
		return 0;
	if (stream->state == MG_UNDECIDED && mg_is_within(session, end)) {
		stream->state = MG_IGNORED;
		return 0;
	}
	scratch = mg_claim_or_lose(session, stream, result);
	if (!scratch)
		return 0;
	got = mg_point(scratch, way, mg_second(registers), mg_third(registers), result);
	if (flags & MG_MSG_TRUNC) /* thrown away: the program's buffer holds something else */
		__builtin_memset(&mg_work_in(scratch)->cursor, 0, sizeof(struct mg_cursor));
	if (stream->state == MG_SPEAKS || mg_decide(session, scratch, stream, end, got))
		mg_tell(session, scratch, stream, end, got);
	mg_release(scratch);
	return 0;
}

/* Look at the first bytes that are read of a connection; of a question `*length` of them are in the buffer. */
static __always_inline enum mg_read mg_reads(struct mg_scratch *scratch, struct mg_stream *stream, const struct mg_end *end, __u64 got,
					     int looks, __u32 *length)
{
	const struct mg_head_bytes *head = bpf_map_lookup_elem(&mg_heads, &end->key);
	__u32 shown, guess;

	*length = mg_gather(scratch, head, stream->held);
	shown = mg_look_at(scratch, *length, end->channel, 0);
	guess = shown & 0xff;
	if (shown >> 16 & MG_ASKS)
		return MG_READS_QUESTION;
	if (guess == MG_YES && !(shown >> 16 & MG_IS_WHOLE) && *length < MG_HEAD_BYTES)
		guess = MG_MORE;
	if (looks)
		return MG_READS_OTHER;
	/* What is not in memory any more when the call ends was seen by somebody else. */
	if ((*length < stream->held + got && *length < MG_HEAD_BYTES) || (guess == MG_YES && mg_may_ask(shown >> 16)))
		return MG_READS_UNSEEN;
	if (guess == MG_MORE && *length == stream->held + got) {
		bpf_map_update_elem(&mg_heads, &end->key, &scratch->record[sizeof(struct mg_message)], BPF_ANY);
		stream->held = *length;
		return MG_READS_OTHER;
	}
	stream->held = 0;
	if (++stream->tries >= MG_TRIES)
		stream->state = MG_IGNORED;
	return MG_READS_OTHER;
}

/* What the current task has received from a descriptor, or moved on unread.
 *
 * Where a gate stands before all servers, who reads a question is held, but never the agent or the first process. A connection is held up
 * once: what comes after the first question was judged with it.
 */
static __noinline int mg_received(const struct mg_session *session, void *registers, __u64 number, __u64 fd, __u64 result)
{
	const struct mg_counters *counters = mg_count(session);
	enum mg_way way = mg_way_of_reading(number);
	struct mg_end end = {};
	struct mg_scratch *scratch;
	const struct mg_stream *asking;
	struct mg_stream *stream;
	enum mg_read what = MG_READS_OTHER;
	int looks = !!(mg_flags_of_reading(registers, number) & MG_MSG_PEEK);
	__u32 length = 0;

	if (!mg_end_of(fd, &end))
		return 0;
	if (end.channel == MG_LOOPBACK)
		return mg_heard(session, registers, number, &end, result);
	if (!counters || !counters->gated || mg_is_never_held(counters) || !mg_is_of_tree(mg_own_file((__u32)fd)))
		return 0;
	end.key.slot = session->slot | MG_READ_SIDE;
	stream = mg_stream_of(&end.key);
	if (!stream || stream->state == MG_IGNORED)
		return 0;
	scratch = mg_claim_quietly();
	if (!scratch) {
		mg_lose_pieces(session, 1, 0);
		return 0;
	}
	if (way != MG_NOTHING) {
		result = mg_point(scratch, way, mg_second(registers), mg_third(registers), result);
		what = mg_reads(scratch, stream, &end, result, looks, &length);
	}
	asking = mg_sent_to(session, &end);
	/* However it is read, in pieces, from its middle or not at all: who sent it was seen to ask, or its call has not ended yet. */
	if (what == MG_READS_OTHER && (asking ? asking->question : way == MG_NOTHING || looks))
		what = MG_READS_UNSEEN;
	if (what != MG_READS_OTHER) {
		stream->tries += MG_UNSEEN;
		stream->judged |= what == MG_READS_QUESTION || (asking && asking->question);
		if (stream->judged || stream->tries >= MG_TRIES)
			stream->state = MG_IGNORED;
		mg_hold(session, scratch, &end, length, what);
	}
	mg_release(scratch);
	return 0;
}

/* A call that sends or moves bytes has ended well. */
static __always_inline int mg_send_ended(const struct mg_session *session, void *registers, __u64 number, __u64 result)
{
	__u64 from = mg_first(registers), to = from;

	/* From a pipe into memory, where that is its end for reading. */
	if (number == __NR_vmsplice && !(MG_READ(struct file, mg_own_file((__u32)from), f_mode) & MG_FMODE_WRITE))
		return mg_received(session, registers, number, from, result);
	if (number == __NR_splice)
		to = mg_third(registers);
	if (number == __NR_tee)
		to = mg_second(registers);
	if (number == __NR_sendfile)
		from = mg_second(registers);
	mg_sent(session, registers, mg_way_of(number), to, result);
	return mg_way_of(number) == MG_MOVED ? mg_received(session, registers, number, from, result) : 0;
}

#endif
