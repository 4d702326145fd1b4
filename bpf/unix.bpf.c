// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Verdicts on connects and sends to unix sockets, for the processes of guarded leaves (kernel 6.7 and newer).
 *
 * The hook sees the address that the program gave, in the kernel's copy, not the file behind it. So only plain paths can
 * match a rule: one that is relative, has `.`, `..` or empty components, or goes through /proc is the default's.
 */
#include "mg_leaf.h"
#include "mg_unix.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum { MG_BLOCK = 0, MG_PASS = 1 };

extern void *bpf_cast_to_kern_ctx(void *obj) __ksym;

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

/* --- plain paths ---------------------------------------------------------------------------------------------- */

struct mg_scan {
	const struct mg_name *name;
	__u32 bad;
};

/* Does an empty component, `.` or `..` begin here? The name ends with zeroes, and there is room for three more. */
static __always_inline int mg_bad_component(const __u8 *at)
{
	__u8 first = at[0], second = at[1], third = at[2];

	if (first == '/' || !first)
		return 1;
	if (first != '.')
		return 0;
	return second == '/' || !second || (second == '.' && (third == '/' || !third));
}

/* Each byte is judged by those after it alone, so the verifier needs one pass. */
static long mg_scan_byte(__u32 index, void *data)
{
	struct mg_scan *scan = data;

	if (index >= MG_SUN_BYTES || index >= scan->name->length)
		return 1;
	if (scan->name->bytes[index] != '/' || !mg_bad_component(&scan->name->bytes[index + 1]))
		return 0;
	scan->bad = 1;
	return 1;
}

/* Is the path one that names a single place, whatever the program's directories? */
__noinline int mg_is_plain(const struct mg_name *name, int relative)
{
	struct mg_scan scan = { .name = name };

	if (!name)
		return 0;
	if (name->bytes[0] != '/' && (!relative || mg_bad_component(name->bytes)))
		return 0;
	bpf_loop(MG_SUN_BYTES, mg_scan_byte, &scan, 0);
	if (scan.bad)
		return 0;
	return !(name->bytes[0] == '/' && name->bytes[1] == 'p' && name->bytes[2] == 'r' && name->bytes[3] == 'o' &&
		 name->bytes[4] == 'c' && name->bytes[5] == '/');
}

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

/* --- hooks ---------------------------------------------------------------------------------------------------- */

/* Does this socket of the tree hold the name right now, where `asking` would find it? The kernel's own facts decide: it is in
 * the table of bound sockets, it was made in our leaf, and a live abstract name belongs to one socket only.
 */
__noinline int mg_holds_name(__u64 holder, __u64 asking_socket, const struct mg_name *name, __u64 leaf)
{
	struct sock *sk = (struct sock *)holder, *asking = (struct sock *)asking_socket;
	struct unix_address *address = BPF_CORE_READ((struct unix_sock *)sk, addr);
	struct mg_name held = {};
	__u32 i;

	if (!name)
		return 0;
	if (!mg_is_tree_socket(sk, leaf) || !BPF_CORE_READ(sk, __sk_common.skc_node.pprev) ||
	    BPF_CORE_READ(sk, __sk_common.skc_net.net) != BPF_CORE_READ(asking, __sk_common.skc_net.net) ||
	    BPF_CORE_READ(sk, sk_type) != name->type ||
	    !mg_read_name(&held, &address->name, BPF_CORE_READ(address, len)) || held.length != name->length)
		return 0;
	for (i = 0; i < MG_NAME_ROOM / 8; i++)
		if (((__u64 *)held.bytes)[i] != ((const __u64 *)name->bytes)[i])
			return 0;
	return 1;
}

static __always_inline int mg_is_own_name(const struct mg_leaf *leaf, struct sock *asking, const struct mg_name *name)
{
	void *names = mg_of_slot(&mg_own_names, leaf->session.slot);
	__u64 *holder = names ? bpf_map_lookup_elem(names, name) : 0;

	return holder && mg_holds_name(*holder, (__u64)asking, name, leaf->id);
}

static __always_inline int mg_judge(struct bpf_sock_addr *ctx, __u8 op)
{
	const struct mg_leaf *leaf = mg_leaf_here();
	struct bpf_sock_addr_kern *kern = bpf_cast_to_kern_ctx(ctx);
	struct sock *asking = BPF_CORE_READ(kern, sk);
	struct mg_answer answer = {};
	struct mg_name name = {};
	int plain = 1;

	if (!mg_is_live(leaf))
		return MG_BLOCK;
	mg_read_name(&name, BPF_CORE_READ(kern, uaddr), BPF_CORE_READ(kern, uaddrlen));
	if (name.length && name.bytes[0])
		plain = mg_is_plain(&name, !!(leaf->session.flags & MG_SESSION_RELATIVE));
	if (plain)
		mg_match_unix(&leaf->session, &name, &answer);
	if (!answer.verdict && name.length && !name.bytes[0]) {
		name.type = BPF_CORE_READ(asking, sk_type);
		if (mg_is_own_name(leaf, asking, &name)) {
			answer.verdict = MG_ALLOW;
			answer.detail = MG_DETAIL_OWN;
		}
	}
	/* Behind a path stands a file, and where the kernel's own hooks judge peers they judge that. */
	if (!answer.verdict && name.length && name.bytes[0] && leaf->session.flags & MG_SESSION_PEERS)
		return MG_PASS;
	if (!answer.verdict) {
		answer.verdict = leaf->session.flags & MG_SESSION_AUDIT ? MG_AUDIT : MG_DENY;
		answer.detail = plain ? MG_DETAIL_NONE : MG_DETAIL_NOT_PLAIN;
	}
	mg_report_unix(&leaf->session, &name, &answer, op);
	return answer.verdict == MG_DENY ? MG_BLOCK : MG_PASS;
}

/* The loader sets type and attach point: libbpf learned these sections later than the kernel. */
SEC("cgroup/connect_unix")
int mg_connect_unix(struct bpf_sock_addr *ctx)
{
	return mg_judge(ctx, MG_NET_CONNECT);
}

SEC("cgroup/sendmsg_unix")
int mg_sendmsg_unix(struct bpf_sock_addr *ctx)
{
	return mg_judge(ctx, MG_NET_SENDMSG);
}
