/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Servers that are kept to less than the tree: tables of their own, which hold besides the session's.
 *
 * A server lives in a leaf below the session's, and whatever programs are on that leaf run for it, too. What its own tables
 * have no rule for is refused by the rule that keeps it.
 */
#ifndef MG_KEPT_H
#define MG_KEPT_H

#include "mg_leaf.h"
#include "mg_net.h"

/* That rule, by the slot of the tables. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MG_SESSIONS_LIMIT);
	__type(key, __u32);
	__type(value, __u32);
} mg_kept_by SEC(".maps");

/* Which tables were asked. */
enum mg_asked { MG_ASKED_SESSION = 1, MG_ASKED_KEPT = 2 };

/* The slot of the tables that the calling task is kept to; 0: none, or it is not of this tree. */
static __always_inline __u32 mg_kept_now(const struct mg_leaf *leaf)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	const struct mg_session *session = bpf_map_lookup_elem(&mg_sessions, &cgroup);

	return session && session->slot == leaf->session.slot ? session->kept : 0;
}

/* No rule decides: the default does; of tables that a server is kept to, in the name of the rule that keeps it. */
__noinline int mg_default(__u32 flags, __u32 kept, struct mg_answer *answer)
{
	__u32 *rule;

	if (!answer)
		return 0;
	rule = kept ? bpf_map_lookup_elem(&mg_kept_by, &kept) : 0;
	answer->rule = rule ? *rule : 0;
	answer->verdict = flags & MG_SESSION_AUDIT ? MG_AUDIT : MG_DENY;
	return 0;
}

/* What the session's tables say, and what those say that a server is kept to: the stricter counts. */
__noinline int mg_join(struct mg_answer *answer, const struct mg_answer *kept)
{
	if (!answer || !kept)
		return 0;
	answer->kept_named = kept->named;
	if (kept->verdict == MG_ALLOW) {
		if (answer->verdict == MG_ALLOW && kept->detail)
			answer->detail = kept->detail;
	} else if (answer->verdict == MG_ALLOW || (answer->verdict == MG_AUDIT && kept->verdict == MG_DENY)) {
		answer->rule = kept->rule;
		answer->verdict = kept->verdict;
		answer->detail = kept->detail;
	}
	return 0;
}

/* What both sets of tables say of a destination; `kept` 0: one is asked. No verdict: no rule decides. */
__noinline int mg_ask(__u32 slot, __u32 kept, const struct mg_target *target, struct mg_answer *answer,
		      struct mg_answer *kept_answer)
{
	if (!target || !answer || !kept_answer)
		return 0;
	mg_match(slot, MG_TABLE_CONNECT, target, answer);
	if (!answer->verdict)
		mg_match_learned(slot, target, answer);
	__builtin_memset(kept_answer, 0, sizeof(*kept_answer));
	kept_answer->verdict = MG_ALLOW;
	if (!kept)
		return 0;
	mg_match(kept, MG_TABLE_CONNECT, target, kept_answer);
	if (!kept_answer->verdict)
		mg_match_learned(kept, target, kept_answer);
	return 0;
}

#endif
