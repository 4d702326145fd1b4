// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Verdicts on unix sockets by what they are: the file behind the name, or who bound an abstract one.
 *
 * The programs on the cgroup see the string that a program gave; here it is the peer itself, whatever led to it. A socket that
 * the tree made is its own business.
 */
#include "mg_judge.h"
#include "mg_unix_rules.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Set by the loader before load: 1 where the programs on the cgroup judge abstract names (Linux 6.7 and newer). */
const volatile struct {
	__u32 names_judged;
	__u32 reserved;
} mg_names SEC(".rodata.names") = {};

/* By the rules for names, as the programs on the cgroup would. A function of its own, for the room on the stack. */
static __noinline int mg_ask_name(const struct mg_session *session, struct unix_address *address, __u8 op)
{
	struct mg_answer answer = {};
	struct mg_name name = {};

	mg_read_name(&name, &address->name, BPF_CORE_READ(address, len));
	mg_match_unix(session, &name, &answer);
	if (!answer.verdict)
		answer.verdict = session->flags & MG_SESSION_AUDIT ? MG_AUDIT : MG_DENY;
	mg_report_unix(session, &name, &answer, op == MG_OP_SEND ? MG_NET_SENDMSG : MG_NET_CONNECT);
	return answer.verdict == MG_DENY ? -MG_EPERM : 0;
}

static __always_inline int mg_ask_peer(const struct mg_session *session, __u64 socket, __u8 op)
{
	struct unix_sock *peer = (void *)socket;
	struct unix_address *address;
	struct dentry *dentry;
	struct mg_seen seen;
	__u32 missing;

	if (!peer)
		return 0;
	if (mg_is_of_slot(session->slot, BPF_CORE_READ(peer, sk.sk_cgrp_data.cgroup, kn, id)))
		return 0;
	dentry = BPF_CORE_READ(peer, path.dentry);
	if (!dentry) {
		address = BPF_CORE_READ(peer, addr);
		if (!address || mg_names.names_judged)
			return 0; /* no name at all: a pair, or a client that answers are sent to */
		return mg_ask_name(session, address, op);
	}
	mg_look_up(session->files, (__u64)dentry, MG_READ, &seen);
	missing = MG_READ & seen.protected;
	if (!missing) {
		mg_look_up(session->sockets, (__u64)dentry, MG_READ, &seen);
		missing = mg_missing(session, &seen, MG_READ);
	}
	if (!missing)
		return 0;
	mg_speak();
	return mg_deny_file(session, (__u64)dentry, 0, seen.rules[0], op, MG_READ, seen.detail, 0);
}

MG_HOOK(unix_stream_connect)
{
	struct mg_session *session = mg_guarded();

	return session ? mg_ask_peer(session, mg_given(ctx, 1), MG_OP_CONNECT) : 0;
}

MG_HOOK(unix_may_send)
{
	struct mg_session *session = mg_guarded();
	struct socket *other;

	if (!session)
		return 0;
	other = (void *)mg_given(ctx, 1);
	return mg_ask_peer(session, (__u64)BPF_CORE_READ(other, sk), MG_OP_SEND);
}

enum { MG_AF_INET = 2, MG_AF_INET6 = 10, MG_AF_NETLINK = 16, MG_SOCK_RAW = 3, MG_SOCK_PACKET = 10 };

/* What the filter of system calls refuses, for sockets that are made past it, through io_uring. */
MG_HOOK(socket_create)
{
	__u32 type, protocol;

	if (!mg_guarded() || (__u32)mg_given(ctx, 3)) /* the kernel's own */
		return 0;
	type = mg_given(ctx, 1);
	protocol = mg_given(ctx, 2);
	switch ((__u32)mg_given(ctx, 0)) {
	case MG_AF_UNIX:
		return 0;
	case MG_AF_INET:
	case MG_AF_INET6:
		if (type == MG_SOCK_RAW)
			break;
		barrier_var(type); /* or the compiler computes the answer, and the verifier cannot tell what it is */
		if (type == MG_SOCK_PACKET)
			break;
		return 0;
	case MG_AF_NETLINK:
		if (protocol)
			break;
		return 0;
	}
	return -MG_EPERM;
}
