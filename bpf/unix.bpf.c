// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Verdicts on connects and sends to unix sockets, for the processes of guarded leaves (kernel 6.7 and newer).
 *
 * The hook sees the address that the program gave, in the kernel's copy, not the file behind it. So only plain paths can
 * match a rule: one that is relative, has `.`, `..` or empty components, or goes through /proc is the default's.
 */
#include "mg_leaf.h"
#include "mg_unix_rules.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum { MG_BLOCK = 0, MG_PASS = 1 };

extern void *bpf_cast_to_kern_ctx(void *obj) __ksym;

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

/* --- hooks ---------------------------------------------------------------------------------------------------- */

/* Does this socket of the tree hold the name right now, where `asking` would find it? The kernel's own facts decide: it is in
 * the table of bound sockets, it was made in our session, and a live abstract name belongs to one socket only.
 */
__noinline int mg_holds_name(__u64 holder, __u64 asking_socket, const struct mg_name *name, __u32 slot)
{
	struct sock *sk = (struct sock *)holder, *asking = (struct sock *)asking_socket;
	struct unix_address *address = BPF_CORE_READ((struct unix_sock *)sk, addr);
	struct mg_name held = {};
	__u32 i;

	if (!name)
		return 0;
	if (!mg_is_tree_socket(sk, slot) || !BPF_CORE_READ(sk, __sk_common.skc_node.pprev) ||
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

	return holder && mg_holds_name(*holder, (__u64)asking, name, leaf->session.slot);
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
