/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The rules for names of unix sockets, and the record of what they decided. */
#ifndef MG_UNIX_RULES_H
#define MG_UNIX_RULES_H

#include "mg_unix.h"

struct mg_unix_rules_of_one {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct mg_unix_rules));
};

MG_PER_SLOT(mg_unix_rules, struct mg_unix_rules_of_one);

struct mg_unix_key {
	struct mg_name name;
	__u32 pid;
	__u32 rule;
	__u8 op;
	__u8 verdict;
	__u8 detail;
	__u8 reserved[5];
};

struct mg_unix_allowed_sums {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__uint(key_size, sizeof(struct mg_unix_key));
	__uint(value_size, sizeof(struct mg_sum));
};

struct mg_unix_denied_sums {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2048);
	__uint(key_size, sizeof(struct mg_unix_key));
	__uint(value_size, sizeof(struct mg_sum));
};

MG_PER_SLOT(mg_unix_sums, struct mg_unix_allowed_sums);
MG_PER_SLOT(mg_unix_denied, struct mg_unix_denied_sums);

struct mg_answer {
	__u32 rule;
	__u8 verdict;
	__u8 detail;
	__u16 reserved;
};

/* --- rules ---------------------------------------------------------------------------------------------------- */

struct mg_compare {
	const struct mg_unix_rule *rule;
	const struct mg_name *name;
	__u32 differs;
};

static long mg_compare_byte(__u32 index, void *data)
{
	struct mg_compare *compare = data;

	if (index >= MG_SUN_BYTES || index >= compare->rule->length)
		return 1;
	compare->differs = compare->rule->pattern[index] != compare->name->bytes[index];
	return compare->differs;
}

struct mg_search {
	const struct mg_unix_rules *rules;
	const struct mg_name *name;
	struct mg_answer *answer;
};

static long mg_try_rule(__u32 index, void *data)
{
	struct mg_search *search = data;
	struct mg_compare compare = { .name = search->name };
	const struct mg_unix_rule *rule;
	__u32 length;
	__u8 next;

	if (index >= MG_UNIX_RULES_LIMIT || index >= search->rules->count)
		return 1;
	rule = &search->rules->rules[index];
	length = rule->length;
	if (length > MG_SUN_BYTES || length > search->name->length)
		return 0;
	compare.rule = rule;
	bpf_loop(MG_SUN_BYTES, mg_compare_byte, &compare, 0);
	next = search->name->bytes[length];
	if (compare.differs || (length < search->name->length &&
				(rule->match == MG_UNIX_EXACT || (rule->match == MG_UNIX_SUBTREE && next != '/'))))
		return 0;
	search->answer->rule = rule->rule;
	search->answer->verdict = rule->verdict;
	return 1;
}

__noinline int mg_match_unix(const struct mg_session *session, const struct mg_name *name, struct mg_answer *answer)
{
	struct mg_search search = { .name = name, .answer = answer };
	__u32 zero = 0;
	void *rules;

	if (!session || !name || !answer)
		return 0;
	__builtin_memset(answer, 0, sizeof(*answer));
	rules = mg_of_slot(&mg_unix_rules, session->slot);
	if (!rules)
		return 0;
	search.rules = bpf_map_lookup_elem(rules, &zero);
	if (search.rules)
		bpf_loop(MG_UNIX_RULES_LIMIT, mg_try_rule, &search, 0);
	return 0;
}

/* The record is built in the ring: on the stack it would not fit beside its key. */
__noinline int mg_report_unix(const struct mg_session *session, const struct mg_name *name,
			      const struct mg_answer *answer, __u32 op)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct mg_unix_key key = {};
	struct mg_unix *record;
	__u64 count, series = 0;
	void *sums, *ring;
	int denial;

	if (!session || !name || !answer)
		return 0;
	denial = answer->verdict != MG_ALLOW;
	key.name = *name;
	key.pid = BPF_CORE_READ(task, tgid);
	key.rule = answer->rule;
	key.op = op;
	key.verdict = answer->verdict;
	key.detail = answer->detail;
	sums = denial ? mg_of_slot(&mg_unix_denied, session->slot) : mg_of_slot(&mg_unix_sums, session->slot);
	count = mg_tally(session, sums, &key, &series);
	if (!count)
		return 0;
	ring = denial ? mg_of_slot(&mg_denials, session->slot) : mg_of_slot(&mg_activity, session->slot);
	record = ring ? bpf_ringbuf_reserve(ring, sizeof(*record), 0) : 0;
	if (!record) {
		mg_lost(session, denial);
		return 0;
	}
	mg_fill_head(&record->head, MG_RECORD_UNIX);
	record->head.lost_before = mg_take_lost(session, denial);
	record->series = series;
	record->count = count;
	record->rule = answer->rule;
	record->op = op;
	record->verdict = answer->verdict;
	record->detail = answer->detail;
	record->path_length = name->length;
	__builtin_memcpy(record->path, name->bytes, sizeof(record->path));
	record->reserved = 0;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

#endif
