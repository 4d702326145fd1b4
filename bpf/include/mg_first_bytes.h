/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The host that the first bytes of a TCP stream name: the server name of a TLS hello, or the Host of an HTTP request.
 *
 * A stream arrives in pieces that its sender chose, and a hello is cut once more into TLS records. So it is read byte by byte,
 * each byte once and in order, and where the reader stands is kept with the socket, whose lock every sender holds. A server
 * must not be able to read another name than we do: where two readers could differ the stream is refused, or each name counts.
 */
#ifndef MG_FIRST_BYTES_H
#define MG_FIRST_BYTES_H

#include "mg_kept.h"

enum {
	MG_TLS_CHANGE = 20, MG_TLS_HANDSHAKE = 22, MG_TLS_DATA = 23, MG_TLS_HEARTBEAT = 24,
	MG_TLS_MAJOR = 3,
	MG_TLS_HELLO = 1,
	MG_TLS_FIXED = 34,	/* version and random */
	MG_TLS_LONGEST_HELLO = 1 << 18,	/* more than its fields can fill */
	MG_TLS_IDLE_RECORDS = 32,	/* that carry nothing of a hello; servers bear fewer */
	MG_TLS_EARLY_DATA = 42,	/* an extension: records of data follow, which a server that wants another hello passes over */
	MG_TLS_LONGEST_EARLY = 1 << 20,	/* far more than servers pass over */
	MG_MYSQL_BYTES = 35,	/* of the request for TLS, behind its first one */
	MG_POSTGRES_LONGEST = 10000,	/* of what a client begins with */
	MG_HOST_LONGEST = 253,
	MG_HOST_NOBODYS = 255,	/* the length of what no rule can name; with a dot at its end a name may have one more than the longest */
	/* A large packet with a byte in each record takes a step for every byte. */
	MG_READ_STEPS = 1 << 20,
};

enum mg_reads {
	MG_READS_FIRST,		/* the byte that tells what the stream is */
	MG_READS_PREAMBLE,	/* what a database is asked before a hello */
	/* TLS: fields of a hello, numbers but for the name */
	MG_READS_TYPE, MG_READS_LENGTH, MG_READS_SESSION, MG_READS_CIPHERS, MG_READS_COMPRESSION, MG_READS_EXTENSIONS,
	MG_READS_EXTENSION, MG_READS_EXTENSION_LENGTH, MG_READS_NAMES, MG_READS_NAME_TYPE, MG_READS_NAME_LENGTH, MG_READS_NAME,
	/* HTTP */
	MG_READS_METHOD, MG_READS_TARGET, MG_READS_SCHEME, MG_READS_SLASHES, MG_READS_AUTHORITY, MG_READS_REQUEST,
	MG_READS_LINE, MG_READS_HOST, MG_READS_PORT, MG_READS_BRACKETS,
	/* no reading */
	MG_READS_BACKWARDS,	/* a name is complete: it is turned around, and judged */
	MG_READS_DONE,		/* nothing more is looked at */
	MG_READS_REFUSAL,	/* to be told */
	MG_READS_REFUSED,	/* nothing more is let through */
};

/* Where the reader of one stream stands. */
struct mg_stream {
	__u64 recent;		/* HTTP: the last bytes of a word or line */
	__u32 next;		/* sequence number of the next byte */
	__u32 number;		/* a field that is being read */
	__u32 skip;		/* bytes to pass over */
	__u32 hello_left;	/* of a hello, beside `skip` */
	__u32 record_left;	/* of a TLS record */
	__u32 early;		/* bytes of early data that a server may pass over yet */
	__u16 extension;
	__u16 list_left;	/* of the server names */
	__u16 name_left;	/* of one name that is being read */
	__u8 state;		/* enum mg_reads */
	__u8 after;		/* the state after a name */
	__u8 tls;
	__u8 major;		/* of the version of a record */
	__u8 sure;		/* it can be nothing but TLS: a hello has begun */
	__u8 said_hello;	/* a second one may come, when the server wants another key share */
	__u8 aside;		/* the record carries no part of a hello */
	__u8 have;		/* bytes of `number`, of a preamble, or of a name that is turned around */
	__u8 header;		/* bytes of the header of a record that are read; 0 outside of one */
	__u8 type;		/* of a record */
	__u8 name_type;
	__u8 idle;
	__u8 matched;		/* HTTP: bytes of "host" that the line began with, or MG_NO_MATCH; a version was read */
	__u8 blank;		/* HTTP: the line is empty so far, enum mg_blank */
	__u8 host_ended;	/* HTTP: the line of a host is over, enum mg_blank */
	__u8 named;		/* this hello has named a host */
	__u8 letters;		/* what the name is made of, enum mg_letters */
	__u8 spaced;		/* HTTP: blanks came after the name, or a bracket after an address */
	__u8 asked;		/* whose rules have to allow a host, enum mg_asked */
	__u32 kept;		/* slot of the tables that its program is kept to */
	__u16 length;		/* of the name, and of what does not fit */
	struct mg_host_key key;
	struct mg_host record;
};

enum { MG_NO_MATCH = 255 };

/* What stands in front of a byte in its line. */
enum mg_blank {
	MG_BLANK_NOT,
	MG_BLANK_RETURN,	/* a carriage return alone */
	MG_BLANK_ALL,		/* nothing */
};

enum mg_letters {
	MG_LETTER_DOT = 1,
	MG_LETTER_COLON = 2,
	MG_LETTER_HEX = 4,	/* a to f */
	MG_LETTER_OTHER = 8,	/* what no address has */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mg_stream);
} mg_first_bytes SEC(".maps");

struct mg_host_rules {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(struct mg_host_key));
	__uint(value_size, sizeof(struct mg_port_rules));
};

MG_PER_SLOT(mg_hosts, struct mg_host_rules);

struct mg_host_denied_sums {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2048);
	__uint(key_size, sizeof(struct mg_host_target));
	__uint(value_size, sizeof(struct mg_sum));
};

MG_PER_SLOT(mg_host_denied, struct mg_host_denied_sums);

/* What a piece is read with. */
struct mg_reading {
	struct __sk_buff *skb;
	struct mg_stream *stream;
	const struct mg_session *session;
	struct mg_target target;
	struct mg_answer answer;
	__u32 at;
	__u32 end;
};

/* Too large for the stack. */
const volatile struct mg_host_key mg_no_host_key SEC(".rodata.hosts") = { .bits = 8, .bytes = { MG_HOST_NONE } };

/* --- verdicts ------------------------------------------------------------------------------------------------- */

/* The rules for what names no host; 0: names are not looked at. */
static __always_inline const struct mg_port_rules *mg_without_host(__u32 slot)
{
	void *hosts = mg_of_slot(&mg_hosts, slot);

	return hosts ? bpf_map_lookup_elem(hosts, (void *)&mg_no_host_key) : 0;
}

static __always_inline void mg_ask_rules(const struct mg_port_rules *rules, const struct mg_target *target,
					 struct mg_answer *answer)
{
	struct mg_search search = {};

	search.rules = rules;
	search.target = target;
	search.answer = answer;
	search.mask = mg_protocol_mask(target->protocol);
	bpf_loop(MG_PORT_RULES_LIMIT, mg_try_rule, &search, 0);
}

/* May something be sent there that names no host? Only where a rule by name alone opens it. */
__noinline int mg_judge_without_host(__u32 slot, const struct mg_target *target, struct mg_answer *answer)
{
	const struct mg_port_rules *rules;

	if (!target || !answer)
		return 0;
	__builtin_memset(answer, 0, sizeof(*answer));
	rules = mg_without_host(slot);
	if (!rules)
		answer->verdict = MG_ALLOW;
	else
		mg_ask_rules(rules, target, answer);
	return 0;
}

/* A datagram that a rule by name lets go, of the session or of the tables of `kept`: QUIC names its host where no program can read it. */
__noinline int mg_judge_datagram(const struct mg_session *session, __u32 kept, const struct mg_target *target,
				 struct mg_answer *answer)
{
	struct mg_answer without = {};

	if (!session || !target || !answer)
		return 0;

	if ((answer->named & (MG_TCP | MG_UDP)) == MG_UDP || target->protocol != IPPROTO_UDP)
		return 0; /* the rule says that datagrams are meant */
	mg_judge_without_host(kept ? kept : session->slot, target, &without);
	if (without.verdict == MG_ALLOW)
		return 0;
	mg_default(session->flags, kept, answer);
	answer->detail = MG_DETAIL_NO_HOST;
	return 0;
}

static __always_inline void mg_refuse(struct mg_reading *reading, __u8 detail)
{
	reading->answer.detail = detail;
	reading->stream->state = MG_READS_REFUSAL;
}

static __always_inline void mg_unclear(struct mg_reading *reading)
{
	__builtin_memset(&reading->answer, 0, sizeof(reading->answer));
	mg_refuse(reading, MG_DETAIL_UNCLEAR);
}

/* What the tables that a program is kept to do not allow, the rule that keeps it refuses, unless one of theirs does. */
static __always_inline void mg_blame_kept(struct mg_reading *reading)
{
	if (reading->answer.verdict != MG_ALLOW && !reading->answer.rule)
		mg_default(reading->session->flags, reading->stream->kept, &reading->answer);
}

/* The bytes name no host and will not. */
static __always_inline void mg_no_host(struct mg_reading *reading)
{
	struct mg_stream *stream = reading->stream;

	reading->answer.verdict = MG_ALLOW;
	if (stream->asked & MG_ASKED_SESSION)
		mg_judge_without_host(reading->session->slot, &reading->target, &reading->answer);
	if (reading->answer.verdict == MG_ALLOW && stream->asked & MG_ASKED_KEPT) {
		mg_judge_without_host(stream->kept, &reading->target, &reading->answer);
		mg_blame_kept(reading);
	}
	stream->state = MG_READS_DONE;
	if (reading->answer.verdict != MG_ALLOW)
		mg_refuse(reading, MG_DETAIL_NO_HOST);
}

/* It is no hello, or none that a server would take. A second one that is none may be whatever follows a handshake. */
static __always_inline void mg_no_hello(struct mg_reading *reading)
{
	struct mg_stream *stream = reading->stream;

	if (stream->said_hello)
		stream->state = MG_READS_DONE;
	else if (stream->sure)
		mg_unclear(reading);
	else
		mg_no_host(reading);
}

/* --- names ---------------------------------------------------------------------------------------------------- */

static __always_inline __u8 mg_lower(__u8 byte)
{
	return byte >= 'A' && byte <= 'Z' ? byte + 32 : byte;
}

static __always_inline int mg_is_of_a_name(__u8 byte)
{
	__u8 low = mg_lower(byte);

	return (low >= 'a' && low <= 'z') || (byte >= '0' && byte <= '9') || byte == '-' || byte == '_' || byte == '.';
}

static __always_inline void mg_begin_name(struct mg_stream *stream)
{
	__builtin_memset(stream->record.target.name, 0, sizeof(stream->record.target.name));
	stream->length = 0;
	stream->letters = 0;
	stream->spaced = 0;
}

/* A colon is of an IPv6 address alone. Servers cut a name there, so what stands before the first one must be a group of an address,
 * which is nobody's name.
 */
static __always_inline int mg_is_of_an_address(const struct mg_stream *stream, __u8 byte)
{
	if (byte != ':')
		return 0;
	return stream->letters & MG_LETTER_COLON || (!(stream->letters & (MG_LETTER_DOT | MG_LETTER_OTHER)) && stream->length <= 4);
}

static __always_inline __u8 mg_letter(__u8 byte)
{
	__u8 low = mg_lower(byte);

	if (byte >= '0' && byte <= '9')
		return 0;
	if (byte == '.')
		return MG_LETTER_DOT;
	if (byte == ':')
		return MG_LETTER_COLON;
	return low >= 'a' && low <= 'f' ? MG_LETTER_HEX : MG_LETTER_OTHER;
}

static __always_inline void mg_add_to_name(struct mg_stream *stream, __u8 byte)
{
	__u32 at = stream->length;
	int ends_label = byte == '.' && (!at || stream->record.target.name[(at - 1) & 0xff] == '.');

	/* Servers cut a name where a byte stands that no name has, or take what is behind for something else. */
	if (at > MG_HOST_LONGEST || ends_label || !(mg_is_of_a_name(byte) || mg_is_of_an_address(stream, byte))) {
		stream->length = MG_HOST_NOBODYS;
		stream->letters = MG_LETTER_OTHER;
		return;
	}
	stream->record.target.name[at & 0xff] = mg_lower(byte);
	stream->length = at + 1;
	stream->letters |= mg_letter(byte);
}

/* An address is no name of somebody else's. */
static __always_inline int mg_is_address(const struct mg_stream *stream)
{
	return !(stream->letters & (stream->letters & MG_LETTER_COLON ? MG_LETTER_OTHER : MG_LETTER_OTHER | MG_LETTER_HEX));
}

static __always_inline void mg_end_name(struct mg_stream *stream, __u8 after)
{
	stream->after = after;
	stream->have = 0;
	stream->state = MG_READS_BACKWARDS;
	if (!stream->length || mg_is_address(stream)) {
		stream->state = after;
		return;
	}
	if (stream->letters & MG_LETTER_COLON)
		stream->length = MG_HOST_NOBODYS;
	stream->named = 1;
	if (stream->length > 1 && stream->record.target.name[(stream->length - 1) & 0xff] == '.')
		stream->length--;
}

static __always_inline void mg_ask_name(struct mg_reading *reading, __u32 slot)
{
	void *hosts = mg_of_slot(&mg_hosts, slot);
	const struct mg_port_rules *rules;

	__builtin_memset(&reading->answer, 0, sizeof(reading->answer));
	rules = hosts ? bpf_map_lookup_elem(hosts, &reading->stream->key) : 0;
	if (rules)
		mg_ask_rules(rules, &reading->target, &reading->answer);
}

static __always_inline void mg_judge_name(struct mg_reading *reading)
{
	struct mg_stream *stream = reading->stream;

	stream->key.bits = (stream->length + 2) * 8;
	reading->answer.verdict = MG_ALLOW;
	if (stream->asked & MG_ASKED_SESSION)
		mg_ask_name(reading, reading->session->slot);
	if (reading->answer.verdict == MG_ALLOW && stream->asked & MG_ASKED_KEPT) {
		mg_ask_name(reading, stream->kept);
		mg_blame_kept(reading);
	}
	if (reading->answer.verdict == MG_ALLOW)
		stream->state = stream->after;
	else
		mg_refuse(reading, MG_DETAIL_HOST);
}

/* One byte of the key that the rules are asked with. */
static __always_inline void mg_turn_name(struct mg_reading *reading)
{
	struct mg_stream *stream = reading->stream;
	__u32 length = stream->length, have = stream->have;

	if (length > MG_HOST_LONGEST) {
		__builtin_memset(&reading->answer, 0, sizeof(reading->answer));
		mg_refuse(reading, MG_DETAIL_HOST);
		return;
	}
	if (have < length) {
		stream->key.bytes[(have + 1) & 0xff] = stream->record.target.name[(length - 1 - have) & 0xff];
		stream->have = have + 1;
		return;
	}
	stream->key.bytes[0] = MG_HOST_NAMED;
	stream->key.bytes[(length + 1) & 0xff] = 0;
	stream->have = 0;
	mg_judge_name(reading);
}

/* --- TLS ------------------------------------------------------------------------------------------------------ */

/* Data behind a hello that announced it: a server that asks for a second hello passes over them, so the reading goes on. */
static __always_inline void mg_read_early(struct mg_stream *stream)
{
	__u32 size = stream->record_left + 5;

	if (size > stream->early)
		stream->state = MG_READS_DONE;
	else
		stream->early -= size;
}

/* The header of a record: type, version, length. */
static __always_inline void mg_read_header(struct mg_reading *reading, __u8 byte)
{
	struct mg_stream *stream = reading->stream;
	__u8 at = stream->header;

	stream->header = at + 1;
	if (at == 0) {
		stream->type = byte;
		if (byte < MG_TLS_CHANGE || byte > MG_TLS_HEARTBEAT ||
		    (byte > MG_TLS_HANDSHAKE && stream->said_hello && (byte != MG_TLS_DATA || !stream->early)))
			mg_no_hello(reading);
	} else if (at == 1) {
		stream->major = byte;
	} else if (at == 3) {
		stream->record_left = (__u32)byte << 8;
	} else if (at == 4) {
		stream->record_left |= byte;
		stream->header = 0;
		stream->aside = stream->type != MG_TLS_HANDSHAKE;
		if (stream->type == MG_TLS_DATA && stream->said_hello)
			mg_read_early(stream);
		else if ((stream->aside || !stream->record_left) && ++stream->idle > MG_TLS_IDLE_RECORDS)
			mg_unclear(reading); /* a server counts those in a row, and may go on */
	}
}

/* A hello is over; another one may follow. */
static __always_inline void mg_end_hello(struct mg_reading *reading)
{
	struct mg_stream *stream = reading->stream;

	if (!stream->named) {
		mg_no_host(reading);
		if (stream->state != MG_READS_DONE)
			return;
	}
	stream->said_hello = 1;
	stream->named = 0;
	stream->state = MG_READS_TYPE;
}

/* Nothing of a hello is left. */
static __always_inline int mg_is_over(const struct mg_stream *stream)
{
	return stream->state > MG_READS_LENGTH && stream->state <= MG_READS_NAME && !stream->hello_left && !stream->skip;
}

/* It must be over where a field is; old clients send no extensions. */
static __always_inline int mg_is_whole(const struct mg_stream *stream)
{
	return (stream->state == MG_READS_EXTENSION || stream->state == MG_READS_EXTENSIONS) && !stream->have;
}

static __always_inline void mg_skip(struct mg_reading *reading, __u32 count, __u8 state)
{
	struct mg_stream *stream = reading->stream;

	if (count > stream->hello_left) {
		mg_no_hello(reading);
		return;
	}
	stream->hello_left -= count;
	stream->skip = count;
	stream->state = state;
}

static __always_inline __u8 mg_width(__u8 state)
{
	switch (state) {
	case MG_READS_TYPE:
	case MG_READS_SESSION:
	case MG_READS_COMPRESSION:
	case MG_READS_NAME_TYPE:
		return 1;
	case MG_READS_LENGTH:
		return 3;
	}
	return 2;
}

static __always_inline void mg_take_number(struct mg_reading *reading, __u32 number)
{
	struct mg_stream *stream = reading->stream;

	switch (stream->state) {
	case MG_READS_TYPE:
		if (number != MG_TLS_HELLO)
			mg_no_hello(reading);
		else
			stream->state = MG_READS_LENGTH;
		break;
	case MG_READS_LENGTH:
		stream->hello_left = number;
		stream->extension = 0;
		stream->name_left = 0;
		if (stream->major == MG_TLS_MAJOR && number >= MG_TLS_FIXED)
			stream->sure = 1;
		if (number > MG_TLS_LONGEST_HELLO)
			mg_no_hello(reading);
		else
			mg_skip(reading, MG_TLS_FIXED, MG_READS_SESSION);
		break;
	case MG_READS_SESSION:
		mg_skip(reading, number, MG_READS_CIPHERS);
		break;
	case MG_READS_CIPHERS:
		mg_skip(reading, number, MG_READS_COMPRESSION);
		break;
	case MG_READS_COMPRESSION:
		mg_skip(reading, number, MG_READS_EXTENSIONS);
		break;
	case MG_READS_EXTENSIONS:
		if (number != stream->hello_left)
			mg_no_hello(reading);
		else
			stream->state = MG_READS_EXTENSION;
		break;
	case MG_READS_EXTENSION:
		stream->extension = number;
		if (number == MG_TLS_EARLY_DATA)
			stream->early = MG_TLS_LONGEST_EARLY;
		stream->state = MG_READS_EXTENSION_LENGTH;
		break;
	case MG_READS_EXTENSION_LENGTH:
		if (stream->extension || number > stream->hello_left) {
			mg_skip(reading, number, MG_READS_EXTENSION);
		} else {
			stream->list_left = number;
			stream->state = MG_READS_NAMES;
		}
		break;
	case MG_READS_NAMES:
		if (!number || number + 2 != stream->list_left) {
			mg_no_hello(reading);
		} else {
			stream->list_left = number;
			stream->state = MG_READS_NAME_TYPE;
		}
		break;
	case MG_READS_NAME_TYPE:
		stream->name_type = number;
		stream->state = MG_READS_NAME_LENGTH;
		break;
	case MG_READS_NAME_LENGTH:
		if (!number || number + 3 > stream->list_left) {
			mg_no_hello(reading);
			break;
		}
		stream->list_left -= number + 3;
		if (stream->name_type) {
			mg_skip(reading, number, stream->list_left ? MG_READS_NAME_TYPE : MG_READS_EXTENSION);
		} else {
			stream->name_left = number;
			stream->state = MG_READS_NAME;
			mg_begin_name(stream);
		}
		break;
	}
}

/* A byte of a hello that is not passed over. */
static __always_inline void mg_read_hello(struct mg_reading *reading, __u8 byte)
{
	struct mg_stream *stream = reading->stream;
	__u32 number;

	if (stream->state > MG_READS_LENGTH)
		stream->hello_left--;
	if (stream->state == MG_READS_NAME) {
		mg_add_to_name(stream, byte);
		if (!--stream->name_left)
			mg_end_name(stream, stream->list_left ? MG_READS_NAME_TYPE : MG_READS_EXTENSION);
		return;
	}
	number = stream->number << 8 | byte;
	if (++stream->have < mg_width(stream->state)) {
		stream->number = number;
		return;
	}
	stream->have = 0;
	stream->number = 0;
	mg_take_number(reading, number);
}

/* --- HTTP ----------------------------------------------------------------------------------------------------- */

static __always_inline int mg_is_blank(__u8 byte)
{
	return byte == ' ' || byte == '\t' || byte == '\v' || byte == '\f';
}

/* What Python takes for a blank in the line of a request, too. */
static __always_inline int mg_is_odd_blank(__u8 byte)
{
	return (byte >= 0x1c && byte <= 0x1f) || byte == 0x85 || byte == 0xa0;
}

static __always_inline int mg_ends_line(__u8 byte)
{
	return byte == '\n' || byte == '\r';
}

/* Some servers take what follows a carriage return, or stands in the next line behind blanks, for more of the host's line. */
static __always_inline int mg_goes_on(struct mg_stream *stream, __u8 byte)
{
	__u8 before = stream->host_ended;

	stream->host_ended = before == MG_BLANK_RETURN ? MG_BLANK_ALL : MG_BLANK_NOT;
	return (before == MG_BLANK_RETURN && byte != '\n') || (before == MG_BLANK_ALL && mg_is_blank(byte));
}

/* In a line of the head: does it begin with "host:"? A carriage return begins a line as well, and blanks before a name do not
 * count, as some servers see it so. Only an empty line ends the head.
 */
static __always_inline void mg_read_line(struct mg_reading *reading, __u8 byte)
{
	const __u32 host = 0x74736f68; /* "host", its first byte lowest */
	struct mg_stream *stream = reading->stream;
	__u8 matched = stream->matched;

	if (stream->host_ended && mg_goes_on(stream, byte)) {
		mg_unclear(reading);
		return;
	}
	if (byte == '\n') {
		if (stream->blank)
			stream->state = MG_READS_DONE;
		stream->blank = MG_BLANK_ALL;
		stream->matched = 0;
		return;
	}
	if (byte == '\r') {
		stream->blank = stream->blank == MG_BLANK_ALL ? MG_BLANK_RETURN : MG_BLANK_NOT;
		stream->matched = 0;
		return;
	}
	stream->blank = MG_BLANK_NOT;
	if (matched == MG_NO_MATCH || ((matched == 0 || matched == 4) && mg_is_blank(byte)))
		return;
	if (matched == 4 && byte == ':') {
		stream->state = MG_READS_HOST;
		mg_begin_name(stream);
	} else if (matched < 4 && mg_lower(byte) == (__u8)(host >> 8 * matched)) {
		stream->matched = matched + 1;
	} else {
		stream->matched = MG_NO_MATCH;
	}
}

/* The host, in the target of a request or in its Host line. */
static __always_inline void mg_read_http_name(struct mg_reading *reading, __u8 byte)
{
	struct mg_stream *stream = reading->stream;
	int in_target = stream->state == MG_READS_AUTHORITY;

	if (mg_ends_line(byte) || (in_target && (mg_is_blank(byte) || byte == '/' || byte == '?' || byte == '#'))) {
		stream->recent = 0;
		stream->blank = byte == '\n' ? MG_BLANK_ALL : MG_BLANK_NOT;
		if (!in_target)
			stream->host_ended = byte == '\n' ? MG_BLANK_ALL : MG_BLANK_RETURN;
		stream->matched = 0;
		mg_end_name(stream, in_target ? MG_READS_REQUEST : MG_READS_LINE);
	} else if (mg_is_blank(byte)) {
		stream->spaced = stream->length > 0;
	} else if (stream->spaced || byte == '@' || byte == '\\') {
		mg_unclear(reading);
	} else if (byte == '[' && !stream->length) { /* an IPv6 address */
		stream->after = in_target;
		stream->state = MG_READS_BRACKETS;
	} else if (byte == ':') {
		stream->after = in_target;
		stream->state = MG_READS_PORT;
	} else {
		mg_add_to_name(stream, byte);
	}
}

/* What stands between the colon after a name and its end. */
static __always_inline void mg_read_http_port(struct mg_reading *reading, __u8 byte)
{
	struct mg_stream *stream = reading->stream;

	if (byte >= '0' && byte <= '9')
		return;
	if (stream->after && mg_ends_line(byte)) {
		mg_unclear(reading);
		return;
	}
	stream->state = stream->after ? MG_READS_AUTHORITY : MG_READS_HOST;
	if (mg_ends_line(byte) || mg_is_blank(byte) || byte == '/' || byte == '?' || byte == '#')
		mg_read_http_name(reading, byte);
	else
		mg_unclear(reading);
}

/* An IPv6 address, and what stands behind it: a port, or nothing. */
static __always_inline void mg_read_brackets(struct mg_reading *reading, __u8 byte)
{
	struct mg_stream *stream = reading->stream;

	if (stream->spaced) {
		stream->spaced = 0;
		stream->state = MG_READS_PORT;
		if (byte != ':')
			mg_read_http_port(reading, byte);
	} else if (byte == ']') {
		stream->spaced = 1;
	} else if (byte != ':' && mg_letter(byte) > MG_LETTER_HEX) {
		mg_unclear(reading);
	}
}

/* The line of the request, after the host where it has one: it must hold a version, else it is another protocol. Which versions
 * a server takes for which, and how it wants the protocol to be spelled, is its own affair.
 */
static __always_inline void mg_read_request(struct mg_reading *reading, __u8 byte)
{
	struct mg_stream *stream = reading->stream;

	if (mg_ends_line(byte)) {
		if (stream->matched) {
			stream->state = MG_READS_LINE;
			stream->matched = 0;
			stream->blank = byte == '\n' ? MG_BLANK_ALL : MG_BLANK_NOT;
		} else if (byte == '\n') {
			mg_no_host(reading);
		}
	} else if (!mg_is_blank(byte)) {
		if (stream->recent == '/' && byte >= '0' && byte <= '9')
			stream->matched = 1;
		stream->recent = byte;
	}
}

static __always_inline void mg_read_http(struct mg_reading *reading, __u8 byte)
{
	const __u64 connect = 0x434f4e4e454354; /* "CONNECT": what follows is for a proxy, which goes wherever it may */
	const __u64 proxy = 0x50524f5859; /* "PROXY": a line before anything else, which only proxies have to say */
	struct mg_stream *stream = reading->stream;

	switch (stream->state) {
	case MG_READS_METHOD:
		if (mg_is_blank(byte) || mg_is_odd_blank(byte) || byte == '\r') {
			stream->state = MG_READS_TARGET;
			if (stream->recent == connect)
				mg_no_host(reading);
			else if (stream->recent == proxy)
				mg_unclear(reading);
		} else if (byte < '!' || byte > '~') {
			mg_no_host(reading);
		} else {
			stream->recent = stream->recent << 8 | byte;
		}
		break;
	case MG_READS_TARGET:
		if (mg_is_blank(byte) || byte == '\r')
			break;
		stream->state = byte == '/' || byte == '*' ? MG_READS_REQUEST : MG_READS_SCHEME;
		stream->recent = 0;
		stream->matched = 0;
		if (byte == '\n')
			mg_no_host(reading);
		break;
	case MG_READS_SCHEME:
		if (byte == ':') {
			stream->have = 0;
			stream->state = MG_READS_SLASHES;
		} else if (byte == '\n') {
			mg_no_host(reading);
		} else if (mg_is_blank(byte) || byte == '\r' || byte == '/') {
			stream->recent = byte;
			stream->state = MG_READS_REQUEST;
		}
		break;
	case MG_READS_SLASHES:
		if (byte != '/') {
			stream->state = MG_READS_REQUEST;
		} else if (++stream->have == 2) {
			stream->state = MG_READS_AUTHORITY;
			mg_begin_name(stream);
		}
		break;
	case MG_READS_REQUEST:
		mg_read_request(reading, byte);
		break;
	case MG_READS_LINE:
		mg_read_line(reading, byte);
		break;
	case MG_READS_PORT:
		mg_read_http_port(reading, byte);
		break;
	case MG_READS_BRACKETS:
		mg_read_brackets(reading, byte);
		break;
	default:
		mg_read_http_name(reading, byte);
	}
}

/* --- streams -------------------------------------------------------------------------------------------------- */

/* PostgreSQL and MySQL are asked in words of their own whether they speak TLS, and a hello follows. So may the binary form of a
 * PROXY line, which only proxies have to say.
 */
static __always_inline void mg_read_preamble(struct mg_reading *reading, __u8 byte)
{
	const __u32 postgres = 0x04d21630;	/* behind a length: encryption by GSSAPI; TLS is one less */
	const __u64 proxy = 0x000d0a515549540a;
	const __u64 mysql = 0x0000010008000000;	/* the rest of a length, the first packet, and the flag for TLS */
	const __u64 of_mysql = 0xffffff0008000000;
	struct mg_stream *stream = reading->stream;
	__u64 said;

	if (stream->number) {
		if (!--stream->number)
			stream->state = MG_READS_FIRST;
		return;
	}
	if (++stream->have > 8) {
		if (stream->have == MG_MYSQL_BYTES)
			stream->state = MG_READS_FIRST;
		return;
	}
	said = stream->recent << 8 | byte;
	stream->recent = said;
	if (stream->have < 8)
		return;
	if (said == proxy) {
		mg_unclear(reading);
	} else if ((__u32)said == postgres || (__u32)said == postgres - 1) {
		/* Not every server wants it to be as long as it should. */
		if (said >> 32 > 8 && said >> 32 <= MG_POSTGRES_LONGEST)
			stream->number = (said >> 32) - 8;
		else
			stream->state = MG_READS_FIRST;
	} else if ((said & of_mysql) != mysql) {
		stream->state = MG_READS_DONE;
	}
}

static __always_inline void mg_read_first(struct mg_reading *reading, __u8 byte)
{
	struct mg_stream *stream = reading->stream;

	if (byte >= MG_TLS_CHANGE && byte <= MG_TLS_HEARTBEAT) {
		stream->tls = 1;
		stream->have = 0;
		stream->state = MG_READS_TYPE;
		mg_read_header(reading, byte);
		return;
	}
	/* Whatever else it is, it is not bound to the name that it begins with. */
	mg_no_host(reading);
	if (stream->state != MG_READS_DONE)
		return;
	stream->recent = byte;
	stream->have = 1;
	/* Servers pass over empty lines before a request, and some over blanks. */
	if (mg_ends_line(byte) || mg_is_blank(byte) || mg_is_odd_blank(byte))
		stream->state = MG_READS_FIRST;
	else if (byte >= '!' && byte <= '~')
		stream->state = MG_READS_METHOD;
	else if (!byte)
		stream->state = MG_READS_PREAMBLE;
}

/* One step, which takes in a byte, or several that are passed over, or none. 1: nothing is left to do. */
static long mg_read_step(__u32 index, void *data)
{
	struct mg_reading *reading = data;
	struct mg_stream *stream = reading->stream;
	__u32 at = reading->at, left = reading->end - at, take = 1;
	__u8 byte;

	if (stream->state >= MG_READS_DONE)
		return 1;
	if (stream->state == MG_READS_BACKWARDS) {
		mg_turn_name(reading);
		return 0;
	}
	if (mg_is_over(stream)) {
		if (mg_is_whole(stream))
			mg_end_hello(reading);
		else
			mg_no_hello(reading);
		return 0;
	}
	if (at >= reading->end)
		return 1;
	if (stream->tls && !stream->header && stream->record_left && (stream->aside || stream->skip)) {
		take = stream->record_left < left ? stream->record_left : left;
		if (!stream->aside) {
			if (take > stream->skip)
				take = stream->skip;
			stream->skip -= take;
		}
		stream->record_left -= take;
		reading->at = at + take;
		return 0;
	}
	if (bpf_skb_load_bytes(reading->skb, at, &byte, 1)) {
		mg_unclear(reading);
		return 1;
	}
	reading->at = at + 1;
	if (stream->state == MG_READS_FIRST) {
		mg_read_first(reading, byte);
	} else if (stream->state == MG_READS_PREAMBLE) {
		mg_read_preamble(reading, byte);
	} else if (!stream->tls) {
		mg_read_http(reading, byte);
	} else if (stream->header || !stream->record_left) {
		mg_read_header(reading, byte);
	} else {
		stream->record_left--;
		mg_read_hello(reading, byte);
	}
	return 0;
}

/* From `sequence` on a new stream begins, whose host has to be allowed by those that are `asked`. 0: it cannot be followed. */
static __always_inline int mg_begin_stream(struct bpf_sock *sk, __u32 sequence, __u8 asked, __u32 kept)
{
	struct mg_stream *stream = bpf_sk_storage_get(&mg_first_bytes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!stream)
		return 0;
	__builtin_memset(stream, 0, offsetof(struct mg_stream, key));
	stream->next = sequence;
	stream->asked = asked;
	stream->kept = kept;
	return 1;
}

/* Part of a packet, in pages; of this form since 5.4, whatever the fields were called. */
struct mg_fragment {
	__u64 page;
	__u32 length;
	__u32 offset;
};

struct mg_fragments {
	void *first;
	__u64 own[2];	/* pages that the kernel copies into what programs send */
	__u32 count;
	__u32 handed_over;
	__u32 end;	/* of what nobody can change, from the beginning of the packet on */
};

/* A file's page, or one of a program's memory. The kernel may move pages between packets, and leave behind the flag that says so. */
static __always_inline int mg_is_somebodys(__u64 address)
{
	struct page *page = (void *)address;
	unsigned long head;

	if (address & 1) /* memory of a device */
		return 1;
	if (!bpf_core_field_exists(page->compound_head) || !bpf_core_field_exists(page->mapping))
		return 0;
	head = BPF_CORE_READ(page, compound_head);
	if (head & 1)
		page = (void *)(head - 1);
	return BPF_CORE_READ(page, mapping) != 0;
}

static long mg_pass_fragment(__u32 index, void *data)
{
	struct mg_fragments *fragments = data;
	struct mg_fragment one;

	if (index >= fragments->count ||
	    bpf_probe_read_kernel(&one, sizeof(one), fragments->first + index * sizeof(one)))
		return 1;
	if (one.page != fragments->own[0] && one.page != fragments->own[1] &&
	    (fragments->handed_over || mg_is_somebodys(one.page)))
		return 1;
	fragments->end += one.length;
	return 0;
}

/* How much of a packet, from its beginning on, can nobody change any more? Pages that were handed over (splice, sendfile, zero
 * copy) stay their owner's. What a program sent before them, in the same packet, was copied into pages of the kernel's.
 */
static __always_inline __u32 mg_settled(struct __sk_buff *skb)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct sk_buff *real = (void *)skb;
	struct mg_fragments fragments = {};
	struct skb_shared_info *shared;
	__u8 flags, count;

	shared = (void *)BPF_CORE_READ(real, head) + BPF_CORE_READ(real, end);
	if (bpf_core_read(&flags, sizeof(flags), &shared->flags) || bpf_core_read(&count, sizeof(count), &shared->nr_frags))
		return 0;
	fragments.first = (void *)shared + bpf_core_field_offset(struct skb_shared_info, frags);
	fragments.own[0] = (__u64)BPF_CORE_READ(real, sk, sk_frag.page);
	fragments.own[1] = (__u64)BPF_CORE_READ(task, task_frag.page);
	fragments.count = count;
	fragments.handed_over = flags & (MG_SKB_ZERO_COPY | MG_SKB_SHARED);
	fragments.end = skb->len - BPF_CORE_READ(real, data_len);
	bpf_loop(count, mg_pass_fragment, &fragments, 0);
	return fragments.end;
}

/* What lies beside it already is not repeated here: with all that is called, the stack of Linux 6.1 is full. */
struct mg_piece {
	__u32 sequence;
	__u32 data : 31;	/* where it begins in the packet */
	__u32 urgent : 1;
};

/* `owner`: of the socket; 0: it is not known. */
static __always_inline int mg_tell_host(struct mg_reading *reading, const struct mg_owner *owner)
{
	const struct mg_session *session = reading->session;
	struct mg_stream *stream = reading->stream;
	struct mg_answer *answer = &reading->answer;
	struct mg_host *record = &stream->record;

	if (!answer->rule)
		answer->verdict = session->flags & MG_SESSION_AUDIT ? MG_AUDIT : MG_DENY;
	mg_fill_head(&record->head, MG_RECORD_HOST);
	record->head.pid = owner ? owner->pid : 0;
	record->head.tid = owner ? owner->tid : 0;
	record->head.ppid = owner ? owner->ppid : 0;
	if (owner)
		__builtin_memcpy(record->head.comm, owner->comm, sizeof(record->head.comm));
	else
		__builtin_memset(record->head.comm, 0, sizeof(record->head.comm));
	__builtin_memcpy(record->target.address, reading->target.bytes, sizeof(record->target.address));
	record->target.pid = record->head.pid;
	record->target.rule = answer->rule;
	record->target.port = reading->target.port;
	record->target.verdict = answer->verdict;
	record->target.detail = answer->detail;
	record->target.length = stream->length;
	record->count = mg_tally(session, mg_of_slot(&mg_host_denied, session->slot), &record->target, &record->series);
	if (record->count)
		mg_send(session, record, sizeof(*record), 1);
	return answer->verdict == MG_DENY ? MG_READS_REFUSED : MG_READS_DONE;
}

/* Look at a piece of a stream that began at an address of a name. 0: it may not leave.
 *
 * What was looked at before is sent again as it was. What skips something waits until the kernel sends that again.
 */
__noinline int mg_look_at(struct __sk_buff *skb, const struct mg_session *session, const struct mg_piece *piece,
			  const struct mg_target *to, const struct mg_owner *owner)
{
	struct mg_reading reading = {};
	struct mg_stream *stream;
	struct bpf_sock *sk;
	__u32 settled;
	__s32 seen;

	if (!session || !piece || !to)
		return 0;
	sk = skb->sk;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 0;
	stream = bpf_sk_storage_get(&mg_first_bytes, sk, 0, 0);
	if (!stream || stream->state == MG_READS_DONE)
		return 1;
	if (stream->state == MG_READS_REFUSED)
		return 0;
	seen = stream->next - piece->sequence;
	if (seen < 0)
		return 0;
	reading.skb = skb;
	reading.stream = stream;
	reading.session = session;
	reading.target = *to;
	reading.at = piece->data + seen;
	reading.end = skb->len;
	if (reading.at >= reading.end)
		return 1;
	settled = mg_settled(skb);
	if (settled < reading.end)
		reading.end = settled;
	if (piece->urgent) /* the peer leaves a byte out */
		mg_unclear(&reading);
	else
		bpf_loop(MG_READ_STEPS, mg_read_step, &reading, 0);
	stream->next = piece->sequence + (skb->len - piece->data);
	if (stream->state < MG_READS_DONE && reading.at < skb->len)
		mg_unclear(&reading);
	if (stream->state == MG_READS_REFUSAL)
		stream->state = mg_tell_host(&reading, owner);
	return stream->state != MG_READS_REFUSED;
}

#endif
