/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Destinations and the rules for them. */
#ifndef MG_NET_H
#define MG_NET_H

#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include "mg_ring.h"

#define MG_IPPROTO_MPTCP 262
#define MG_AF_INET 2
#define MG_AF_INET6 10

struct mg_prefixes {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(struct mg_prefix));
	__uint(value_size, sizeof(struct mg_port_rules));
};

MG_PER_SLOT(mg_connect, struct mg_prefixes);
MG_PER_SLOT(mg_listen, struct mg_prefixes);

/* One address with port and protocol, in the form that the tables use. */
struct mg_target {
	union {
		__u8 bytes[16];
		__u32 words[4];	/* network order; IPv4 mapped */
	};
	__u16 port;		/* host order */
	__u16 protocol;		/* IPPROTO_* */
};

struct mg_answer {
	__u32 rule;
	__u8 verdict;		/* 0: no rule matches */
	__u8 detail;
	__u8 named;		/* a rule for a name opens it: that rule's protocols, and MG_NAMED */
	__u8 kept_named;	/* the same, of the tables that the socket is kept to besides */
};

struct mg_net_key {
	__u8 address[16];
	__u32 pid;
	__u32 rule;
	__u16 port;
	__u16 protocol;
	__u8 op;
	__u8 verdict;
	__u8 detail;
	__u8 reserved;
};

/* Allowed traffic: the oldest entries make room. */
struct mg_net_allowed_sums {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__uint(key_size, sizeof(struct mg_net_key));
	__uint(value_size, sizeof(struct mg_sum));
};

/* Refused traffic: nothing makes room; a full map means that every further refusal is sent singly. */
struct mg_net_denied_sums {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__uint(key_size, sizeof(struct mg_net_key));
	__uint(value_size, sizeof(struct mg_sum));
};

MG_PER_SLOT(mg_net_sums, struct mg_net_allowed_sums);
MG_PER_SLOT(mg_net_denied, struct mg_net_denied_sums);

static __always_inline void mg_target_v4(struct mg_target *target, __u32 address)
{
	target->words[0] = 0;
	target->words[1] = 0;
	target->words[2] = bpf_htonl(0xffff);
	target->words[3] = address;
}

static __always_inline int mg_is_v4(const struct mg_target *target)
{
	return !target->words[0] && !target->words[1] && target->words[2] == bpf_htonl(0xffff);
}

static __always_inline int mg_is_loopback(const struct mg_target *target)
{
	if (mg_is_v4(target))
		return target->bytes[12] == 127;
	return !target->words[0] && !target->words[1] && !target->words[2] && target->words[3] == bpf_htonl(1);
}

/* 0.0.0.0, ::ffff:0.0.0.0 or :: */
static __always_inline int mg_is_any(const struct mg_target *target)
{
	return !target->words[0] && !target->words[1] && !target->words[3] &&
	       (!target->words[2] || target->words[2] == bpf_htonl(0xffff));
}

static __always_inline __u8 mg_protocol_mask(__u16 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
	case MG_IPPROTO_MPTCP:
		return MG_TCP;
	case IPPROTO_UDP:
		return MG_UDP;
	}
	return 0;
}

/* Which table a match asks. */
enum mg_table { MG_TABLE_CONNECT, MG_TABLE_LISTEN };

struct mg_search {
	const struct mg_port_rules *rules;
	const struct mg_target *target;
	struct mg_answer *answer;
	__u8 mask;
};

/* One rule; returns 1 when it decides. */
static long mg_try_rule(__u32 index, void *data)
{
	struct mg_search *search = data;
	const struct mg_port_rule *rule;
	__u16 port = search->target->port;

	if (index >= MG_PORT_RULES_LIMIT || index >= search->rules->count)
		return 1;
	rule = &search->rules->rules[index];
	if (!(rule->protocols & search->mask))
		return 0;
	if (port && (port < rule->low || port > rule->high))
		return 0;
	if (!port && rule->verdict == MG_DENY && (rule->low > 1 || rule->high < 65535))
		return 0; /* a deny of some ports does not deny the address */
	search->answer->rule = rule->rule;
	search->answer->verdict = rule->verdict;
	search->answer->named = rule->protocols & MG_NAMED ? rule->protocols : 0;
	return 1;
}

/* The rules of the longest prefix that holds the target; port 0 (the kernel picks one) fits every range.
 *
 * A function of its own to the verifier, as all that are not static: it is checked once, not once per caller and path.
 */
__noinline int mg_match(__u32 slot, __u32 table, const struct mg_target *target,
			struct mg_answer *answer)
{
	struct mg_prefix key = { .bits = 128 };
	struct mg_search search = {};
	struct mg_port_rules *rules;
	void *prefixes;

	if (!target || !answer)
		return 0;
	__builtin_memset(answer, 0, sizeof(*answer));
	__builtin_memcpy(key.address, target->bytes, sizeof(key.address));
	prefixes = table == MG_TABLE_LISTEN ? mg_of_slot(&mg_listen, slot) : mg_of_slot(&mg_connect, slot);
	if (!prefixes)
		return 0;
	rules = bpf_map_lookup_elem(prefixes, &key);
	if (!rules)
		return 0;
	search.rules = rules;
	search.target = target;
	search.answer = answer;
	search.mask = mg_protocol_mask(target->protocol);
	bpf_loop(MG_PORT_RULES_LIMIT, mg_try_rule, &search, 0);
	return 0;
}

/* Addresses of names, put here by the session's resolver before it tells them to who asked. */
struct mg_learned_addresses {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__uint(key_size, 16);
	__uint(value_size, sizeof(struct mg_learned));
};

MG_PER_SLOT(mg_names, struct mg_learned_addresses);

/* What names have opened: asked where no rule of the tables decides. An answer that is too old leaves the verdict open. */
__noinline int mg_match_learned(__u32 slot, const struct mg_target *target, struct mg_answer *answer)
{
	struct mg_learned *learned;
	__u8 address[16]; /* older kernels take no key from memory that a caller handed in */
	__u16 port;
	__u64 now;
	void *names;
	__u8 mask;

	if (!target || !answer)
		return 0;
	names = mg_of_slot(&mg_names, slot);
	__builtin_memcpy(address, target->bytes, sizeof(address));
	learned = names ? bpf_map_lookup_elem(names, address) : 0;
	if (!learned)
		return 0;
	now = bpf_ktime_get_ns();
	mask = mg_protocol_mask(target->protocol);
	port = target->port;
	for (int i = 0; i < MG_LEARNED_LIMIT; i++) {
		const struct mg_learned_rule *rule = &learned->rules[i];

		if (i >= learned->count)
			break;
		if (!(rule->protocols & mask) || (port && (port < rule->low || port > rule->high)))
			continue;
		if (rule->expires_ns <= now) {
			if (!answer->verdict)
				answer->detail = MG_DETAIL_EXPIRED;
			continue;
		}
		answer->rule = rule->rule;
		answer->verdict = MG_ALLOW;
		answer->detail = 0;
		answer->named = rule->protocols | MG_NAMED;
		if (mask == MG_TCP || rule->protocols == MG_UDP)
			return 1; /* for datagrams a rule that is for them alone says most */
	}
	return answer->verdict == MG_ALLOW;
}

/* Who did it, when that is not the current task: packets leave in the name of whoever made the socket. */
struct mg_owner {
	__u32 pid;
	__u32 tid;
	__u32 ppid;
	char comm[MG_COMM_BYTES];
};

/* Put a verdict on record; `owner` empty: the current task. */
__noinline int mg_report(const struct mg_session *session, const struct mg_target *target,
			 const struct mg_answer *answer, __u32 op, const struct mg_owner *owner)
{
	struct mg_net record = {};
	struct mg_net_key key = {};
	void *sums;
	int denial;

	if (!session || !target || !answer)
		return 0;
	denial = answer->verdict != MG_ALLOW;
	mg_fill_head(&record.head, MG_RECORD_NET);
	if (owner) {
		record.head.pid = owner->pid;
		record.head.tid = owner->tid;
		record.head.ppid = owner->ppid;
		__builtin_memcpy(record.head.comm, owner->comm, sizeof(record.head.comm));
	}
	__builtin_memcpy(key.address, target->bytes, sizeof(key.address));
	key.pid = record.head.pid;
	key.rule = answer->rule;
	key.port = target->port;
	key.protocol = target->protocol;
	key.op = op;
	key.verdict = answer->verdict;
	key.detail = answer->detail;
	sums = denial ? mg_of_slot(&mg_net_denied, session->slot) : mg_of_slot(&mg_net_sums, session->slot);
	record.count = mg_tally(session, sums, &key, &record.series);
	if (!record.count)
		return 0;
	__builtin_memcpy(record.address, target->bytes, sizeof(record.address));
	record.rule = answer->rule;
	record.port = target->port;
	record.protocol = target->protocol;
	record.op = op;
	record.verdict = answer->verdict;
	record.detail = answer->detail;
	mg_send(session, &record, sizeof(record), denial);
	return 0;
}

#endif
