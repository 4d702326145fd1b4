// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* IPv4 and IPv6 verdicts for the processes of guarded leaves; every program is attached to such a leaf and to nothing else.
 *
 * Hooks see the kernel's copy of an address, so no thread can change it after the check. A socket carries its own
 * facts in socket storage (who made it, which peer was approved, whether it serves), which accepted sockets inherit.
 * Nothing here uses per-CPU scratch: all of it can be preempted.
 */
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "mg_flow.h"
#include "mg_kept.h"
#include "mg_first_bytes.h"
#include "mg_own_ends.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum { MG_BLOCK = 0, MG_PASS = 1 };
enum { MG_SOCK_STREAM = 1, MG_SOCK_DGRAM = 2 };
enum { MG_STATE_LISTEN = 10 };
enum { MG_DNS_PORT = 53 };
enum { MG_EPROTONOSUPPORT = 93 };
enum { MG_LOOPBACK_DEVICE = 1 }; /* of every network namespace */

/* Facts about one socket of a tree. */
struct mg_socket {
	__u64 leaf;		/* whose it is, as mg_leaf.id */
	__u32 kept;		/* slot of the tables that who made it, or used it last, is kept to; 0: none */
	struct mg_target peer;	/* the destination that the connect hook let through */
	struct mg_target server;	/* whom it last asked for a name; the question went to the resolver */
	__u8 approved;		/* `peer` is set */
	__u8 serves;		/* bound or listening where a rule allows it */
	__u8 named;		/* why `peer` was let through, as mg_answer.named */
	__u8 kept_named;	/* the same, as mg_answer.kept_named */
	__u8 own;		/* `peer` was let through as a socket of the tree itself */
	struct mg_owner owner;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct mg_socket);
} mg_sockets SEC(".maps");

/* Peers that sent a datagram to a socket that serves: it may answer them. And peers at a name's address: what a socket began
 * with one of them goes on when the address has grown too old for something new.
 */
struct mg_asker {
	__u64 cookie;
	struct mg_target peer;
	__u32 kept;	/* as in mg_socket, at that time */
};

struct mg_peers {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__uint(key_size, sizeof(struct mg_asker));
	__uint(value_size, sizeof(__u64));
};

MG_PER_SLOT(mg_askers, struct mg_peers);

struct mg_recent_questions {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__uint(key_size, sizeof(struct mg_question_key));
	__uint(value_size, sizeof(struct mg_question));
};

MG_PER_SLOT(mg_questions, struct mg_recent_questions);

/* Ports of the resolvers of all sessions, also those of other engines; with the leaf. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} mg_resolvers SEC(".maps");

/* A context field may only be read at a fixed offset; the compiler likes to join reads of two branches
 * into one at a computed offset, which volatile reads in a straight line forbid.
 */
#define MG_LOAD(field) (*(const volatile __u32 *)&(field))

/* Made here when it is not there yet: the kernel makes the inner sockets of MPTCP itself, past the hook for new sockets.
 * That a hook of ours runs for a socket at all says that it belongs to our cgroup.
 */
static __always_inline struct mg_socket *mg_socket_of(struct bpf_sock_addr *ctx, const struct mg_leaf *leaf)
{
	struct mg_socket *socket = 0;

	if (ctx->sk)
		socket = bpf_sk_storage_get(&mg_sockets, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (socket)
		socket->leaf = leaf->id;
	return socket;
}

/* The tables that a socket is kept to: those of who made it, until somebody uses it who is kept to others. What was let through
 * before was not by theirs. `socket` 0: there was no room for what is known of it.
 */
static __always_inline __u32 mg_keep(const struct mg_leaf *leaf, struct mg_socket *socket)
{
	__u32 kept = mg_kept_now(leaf);

	if (!socket)
		return kept;
	if (kept && socket->kept != kept) {
		socket->kept = kept;
		socket->approved = 0;
		socket->serves = 0;
	}
	return socket->kept;
}

/* --- sockets of the tree itself ------------------------------------------------------------------------------- */

/* The address a socket is bound to, as seen by IPv4 or IPv6. */
static __always_inline void mg_bound(struct bpf_sock *sk, int v4, struct mg_target *bound)
{
	__u32 address4 = MG_LOAD(sk->src_ip4);

	bound->words[0] = MG_LOAD(sk->src_ip6[0]);
	bound->words[1] = MG_LOAD(sk->src_ip6[1]);
	bound->words[2] = MG_LOAD(sk->src_ip6[2]);
	bound->words[3] = MG_LOAD(sk->src_ip6[3]);
	if (v4)
		mg_target_v4(bound, address4);
}

static __always_inline int mg_same_address(const struct mg_target *a, const struct mg_target *b)
{
	return a->words[0] == b->words[0] && a->words[1] == b->words[1] && a->words[2] == b->words[2] &&
	       a->words[3] == b->words[3];
}

/* Whose a socket is, or-ed; 0: not of this tree. */
enum mg_own {
	MG_OWN_TREE = 1,	/* made by this tree */
	MG_OWN_KEPT = 2,	/* and by who is kept to the same tables */
	MG_OWN_AGENT = 4,	/* and by who is kept to none */
};

/* Is the destination a socket that this tree made? Only for addresses of this host: a loopback address, or the very
 * address that the found socket is bound to. A wildcard listener says nothing about a foreign host with the same port.
 */
static __always_inline int mg_found_own(const struct mg_leaf *leaf, __u32 kept, struct bpf_sock *found,
					const struct mg_target *target)
{
	struct mg_socket *socket;
	struct mg_target bound;
	int here;

	mg_bound(found, mg_is_v4(target), &bound);
	here = mg_is_loopback(target) || mg_same_address(&bound, target);
	socket = here ? bpf_sk_storage_get(&mg_sockets, found, 0, 0) : 0;
	if (!socket || socket->leaf != leaf->id)
		return 0;
	return MG_OWN_TREE | (socket->kept == kept ? MG_OWN_KEPT : 0) | (socket->kept ? 0 : MG_OWN_AGENT);
}

static __always_inline void mg_tuple(struct bpf_sock_tuple *tuple, __u32 *size, const struct mg_target *from,
				     const struct mg_target *to)
{
	if (mg_is_v4(to)) {
		tuple->ipv4.saddr = from->words[3];
		tuple->ipv4.daddr = to->words[3];
		tuple->ipv4.sport = bpf_htons(from->port);
		tuple->ipv4.dport = bpf_htons(to->port);
		*size = sizeof(tuple->ipv4);
		return;
	}
	__builtin_memcpy(tuple->ipv6.saddr, from->words, sizeof(tuple->ipv6.saddr));
	__builtin_memcpy(tuple->ipv6.daddr, to->words, sizeof(tuple->ipv6.daddr));
	tuple->ipv6.sport = bpf_htons(from->port);
	tuple->ipv6.dport = bpf_htons(to->port);
	*size = sizeof(tuple->ipv6);
}

/* `ctx` is a socket address or a packet; a macro because the verifier wants the real context type. */
#define MG_OWN(leaf, kept, ctx, from, to)						\
	({										\
		struct bpf_sock_tuple _tuple = {};					\
		struct bpf_sock *_found;						\
		__u32 _size;								\
		int _own = 0;								\
		mg_tuple(&_tuple, &_size, from, to);					\
		_found = mg_protocol_mask((to)->protocol) == MG_UDP ?			\
			bpf_sk_lookup_udp(ctx, &_tuple, _size, BPF_F_CURRENT_NETNS, 0) :	\
			bpf_sk_lookup_tcp(ctx, &_tuple, _size, BPF_F_CURRENT_NETNS, 0);	\
		if (_found) {								\
			_own = mg_found_own(leaf, kept, _found, to);			\
			bpf_sk_release(_found);						\
		}									\
		_own;									\
	})

/* Where a packet of this socket to a local destination will come from. */
static __always_inline void mg_source(struct bpf_sock_addr *ctx, const struct mg_target *to, struct mg_target *from)
{
	struct bpf_sock *sk = ctx->sk;
	struct mg_target own;

	*from = *to; /* an unbound socket talks to an address of this host from the same address */
	if (!sk)
		return;
	from->port = sk->src_port;
	mg_bound(sk, mg_is_v4(to), &own);
	if (!mg_is_any(&own))
		__builtin_memcpy(from->words, own.words, sizeof(from->words));
}

/* --- resolvers ------------------------------------------------------------------------------------------------ */

static __always_inline int mg_is_home(const struct mg_target *target)
{
	return mg_is_loopback(target) && target->words[3] == bpf_htonl(mg_is_v4(target) ? INADDR_LOOPBACK : 1);
}

static __always_inline int mg_is_resolver(const struct mg_leaf *leaf, const struct mg_target *target)
{
	return leaf->session.resolver && target->port == leaf->session.resolver && mg_is_home(target);
}

/* The resolver of another session answers by that one's rules and puts what it is asked on that one's record, so whatever the
 * rules are, in audit too, nobody else speaks to it.
 */
static __always_inline int mg_is_foreign_resolver(const struct mg_leaf *leaf, const struct mg_target *target)
{
	__u32 port = target->port;

	return port != leaf->session.resolver && mg_is_home(target) && bpf_map_lookup_elem(&mg_resolvers, &port);
}

/* --- destinations --------------------------------------------------------------------------------------------- */

static __always_inline int mg_asked_before(const struct mg_leaf *leaf, __u64 cookie, __u32 kept,
					    const struct mg_target *target)
{
	void *askers = mg_of_slot(&mg_askers, leaf->session.slot);
	struct mg_asker asker = {};

	asker.cookie = cookie;
	asker.peer = *target;
	asker.kept = kept;
	return askers && bpf_map_lookup_elem(askers, &asker);
}

static __always_inline void mg_remember_peer(const struct mg_leaf *leaf, __u64 cookie, __u32 kept,
					     const struct mg_target *peer)
{
	void *askers = mg_of_slot(&mg_askers, leaf->session.slot);
	struct mg_asker asker = {};
	__u64 now = bpf_ktime_get_ns();

	asker.cookie = cookie;
	asker.peer = *peer;
	asker.kept = kept;
	if (askers)
		bpf_map_update_elem(askers, &asker, &now, BPF_ANY);
}

static __always_inline int mg_same_peer(const struct mg_target *a, const struct mg_target *b)
{
	return mg_same_address(a, b) && a->port == b->port;
}

/* Was its peer let through at connect? */
static __always_inline int mg_was_approved(const struct mg_socket *socket, const struct mg_target *target)
{
	return socket && socket->approved && mg_same_peer(&socket->peer, target);
}

/* What no rule allows and no rule denies: own listeners pass, the rest is the default's. */
static __always_inline void mg_settle(const struct mg_leaf *leaf, __u32 kept, int own, struct mg_answer *answer)
{
	if (answer->verdict)
		return;
	if (own) {
		answer->verdict = MG_ALLOW;
		answer->detail = MG_DETAIL_OWN;
	} else {
		mg_default(leaf->session.flags, kept, answer);
	}
}

static __always_inline int mg_decide(struct bpf_sock_addr *ctx, const struct mg_leaf *leaf, struct mg_socket *socket,
				     const struct mg_target *target, __u8 op)
{
	struct mg_answer answer = {}, kept = {};
	__u32 keeper = mg_keep(leaf, socket);
	struct mg_target from;
	int own;

	if (mg_is_foreign_resolver(leaf, target)) {
		answer = (struct mg_answer){ .verdict = MG_DENY, .detail = MG_DETAIL_RESOLVER };
		mg_report(&leaf->session, target, &answer, op, 0);
		return MG_BLOCK;
	}
	mg_ask(leaf->session.slot, keeper, target, &answer, &kept);
	if (op == MG_NET_SENDMSG && answer.named)
		mg_judge_datagram(&leaf->session, 0, target, &answer);
	if (op == MG_NET_SENDMSG && kept.named)
		mg_judge_datagram(&leaf->session, keeper, target, &kept);
	if (!answer.verdict || !kept.verdict) {
		mg_source(ctx, target, &from);
		own = MG_OWN(leaf, keeper, ctx, &from, target);
		/* A connected IPv6 socket whose peer is an IPv4 one names it with each datagram: that was judged at connect.
		 * Traffic that others began is on record where they began it.
		 */
		if (op == MG_NET_SENDMSG && answer.verdict != MG_DENY && kept.verdict != MG_DENY &&
		    ((!answer.verdict && !(own & MG_OWN_TREE)) || (!kept.verdict && !(own & MG_OWN_KEPT))) &&
		    (mg_was_approved(socket, target) || mg_asked_before(leaf, bpf_get_socket_cookie(ctx), keeper, target)))
			return MG_PASS;
		mg_settle(leaf, 0, own & MG_OWN_TREE, &answer);
		mg_settle(leaf, keeper, own & MG_OWN_KEPT, &kept);
	}
	mg_join(&answer, &kept);
	if (answer.verdict != MG_DENY && op == MG_NET_SENDMSG && (answer.named || answer.kept_named))
		mg_remember_peer(leaf, bpf_get_socket_cookie(ctx), keeper, target);
	if (answer.verdict != MG_DENY && op == MG_NET_CONNECT && socket) {
		socket->peer = *target;
		socket->approved = 1;
		socket->named = answer.named;
		socket->kept_named = answer.kept_named;
		socket->own = answer.detail == MG_DETAIL_OWN;
	}
	mg_report(&leaf->session, target, &answer, op, 0);
	return answer.verdict == MG_DENY ? MG_BLOCK : MG_PASS;
}

static __always_inline void mg_ports(struct bpf_sock_addr *ctx, struct mg_target *target)
{
	target->port = bpf_ntohs(ctx->user_port);
	target->protocol = ctx->protocol;
}

/* --- names ---------------------------------------------------------------------------------------------------- */

static __always_inline int mg_is_question(const struct mg_leaf *leaf, const struct mg_target *target)
{
	return leaf->session.resolver && target->port == MG_DNS_PORT && mg_protocol_mask(target->protocol);
}

/* A question for a name goes to the session's resolver, whomever the program asks; `target` becomes that. 0: it cannot. */
static __always_inline int mg_redirect(const struct mg_leaf *leaf, struct mg_socket *socket, struct mg_target *target, __u8 op)
{
	if (!socket)
		return 0;
	mg_keep(leaf, socket);
	socket->server = *target;
	target->port = leaf->session.resolver;
	target->words[3] = bpf_htonl(mg_is_v4(target) ? INADDR_LOOPBACK : 1);
	if (target->words[3] == bpf_htonl(1)) {
		target->words[0] = 0;
		target->words[1] = 0;
		target->words[2] = 0;
	}
	if (op == MG_NET_CONNECT) {
		socket->peer = *target;
		socket->approved = 1;
		socket->named = 0;
		socket->kept_named = 0;
		socket->own = 0;
	}
	return 1;
}

/* What the program asked, when `peer` is the resolver that answers in its place; else 0. */
static __always_inline const struct mg_target *mg_asked(struct bpf_sock_addr *ctx, const struct mg_leaf *leaf,
							const struct mg_target *peer)
{
	struct mg_socket *socket;

	if (!mg_is_resolver(leaf, peer))
		return 0;
	socket = mg_socket_of(ctx, leaf);
	if (!socket || socket->server.port != MG_DNS_PORT || mg_is_v4(&socket->server) != mg_is_v4(peer))
		return 0;
	return &socket->server;
}

/* Let the resolver know who asks, by where the question comes from. */
static __always_inline void mg_note_question(const struct mg_leaf *leaf, const struct mg_socket *socket,
					   const struct mg_target *from)
{
	void *questions = mg_of_slot(&mg_questions, leaf->session.slot);
	struct mg_question_key key = { .port = from->port, .protocol = from->protocol };
	struct mg_question question = {};

	if (!questions)
		return;
	__builtin_memcpy(key.address, from->bytes, sizeof(key.address));
	if (socket) {
		question.pid = socket->owner.pid;
		question.tid = socket->owner.tid;
		question.ppid = socket->owner.ppid;
		question.kept = socket->kept;
		__builtin_memcpy(question.comm, socket->owner.comm, sizeof(question.comm));
		__builtin_memcpy(question.server, socket->server.bytes, sizeof(question.server));
	}
	bpf_map_update_elem(questions, &key, &question, BPF_ANY);
}

/* --- hooks of addresses --------------------------------------------------------------------------------------- */

/* The kernel sends to a wildcard destination by way of loopback or the socket's own address; settle it on loopback. */
static __always_inline int mg_to_v4(struct bpf_sock_addr *ctx, const struct mg_leaf *leaf, __u8 op)
{
	struct mg_socket *socket = mg_socket_of(ctx, leaf);
	struct mg_target target;

	if (!ctx->user_ip4 && ctx->user_port)
		ctx->user_ip4 = bpf_htonl(INADDR_LOOPBACK);
	mg_target_v4(&target, ctx->user_ip4);
	mg_ports(ctx, &target);
	if (mg_is_question(leaf, &target)) {
		if (!mg_redirect(leaf, socket, &target, op))
			return MG_BLOCK;
		ctx->user_ip4 = target.words[3];
		ctx->user_port = bpf_htons(target.port);
		return MG_PASS;
	}
	return mg_decide(ctx, leaf, socket, &target, op);
}

static __always_inline void mg_read_v6(struct bpf_sock_addr *ctx, struct mg_target *target)
{
	target->words[0] = MG_LOAD(ctx->user_ip6[0]);
	target->words[1] = MG_LOAD(ctx->user_ip6[1]);
	target->words[2] = MG_LOAD(ctx->user_ip6[2]);
	target->words[3] = MG_LOAD(ctx->user_ip6[3]);
	mg_ports(ctx, target);
}

static __always_inline void mg_write_v6(struct bpf_sock_addr *ctx, const struct mg_target *target)
{
	ctx->user_ip6[0] = target->words[0];
	ctx->user_ip6[1] = target->words[1];
	ctx->user_ip6[2] = target->words[2];
	ctx->user_ip6[3] = target->words[3];
	ctx->user_port = bpf_htons(target->port);
}

static __always_inline int mg_to_v6(struct bpf_sock_addr *ctx, const struct mg_leaf *leaf, __u8 op)
{
	struct mg_socket *socket = mg_socket_of(ctx, leaf);
	struct mg_target target;

	mg_read_v6(ctx, &target);
	if (mg_is_any(&target) && target.port) {
		target.words[3] = target.words[2] ? bpf_htonl(INADDR_LOOPBACK) : bpf_htonl(1);
		ctx->user_ip6[3] = target.words[3];
	}
	if (mg_is_question(leaf, &target)) {
		if (!mg_redirect(leaf, socket, &target, op))
			return MG_BLOCK;
		mg_write_v6(ctx, &target);
		return MG_PASS;
	}
	return mg_decide(ctx, leaf, socket, &target, op);
}

SEC("cgroup/connect4")
int mg_connect4(struct bpf_sock_addr *ctx)
{
	const struct mg_leaf *leaf = mg_leaf_here();

	return mg_is_live(leaf) ? mg_to_v4(ctx, leaf, MG_NET_CONNECT) : MG_BLOCK;
}

SEC("cgroup/connect6")
int mg_connect6(struct bpf_sock_addr *ctx)
{
	const struct mg_leaf *leaf = mg_leaf_here();

	return mg_is_live(leaf) ? mg_to_v6(ctx, leaf, MG_NET_CONNECT) : MG_BLOCK;
}

/* A connected socket that sends with a control message comes here without an address: its peer was judged at connect.
 * Nobody can ask for port 0: the kernel refuses that before.
 */
SEC("cgroup/sendmsg4")
int mg_sendmsg4(struct bpf_sock_addr *ctx)
{
	const struct mg_leaf *leaf = mg_leaf_here();

	if (!mg_is_live(leaf))
		return MG_BLOCK;
	if (!ctx->user_ip4 && !ctx->user_port)
		return MG_PASS;
	return mg_to_v4(ctx, leaf, MG_NET_SENDMSG);
}

SEC("cgroup/sendmsg6")
int mg_sendmsg6(struct bpf_sock_addr *ctx)
{
	const struct mg_leaf *leaf = mg_leaf_here();

	if (!mg_is_live(leaf))
		return MG_BLOCK;
	if (!ctx->user_port && !(ctx->user_ip6[0] | ctx->user_ip6[1] | ctx->user_ip6[2] | ctx->user_ip6[3]))
		return MG_PASS;
	return mg_to_v6(ctx, leaf, MG_NET_SENDMSG);
}

/* The kernel takes no refusal in these: what was sent is with the socket already. An answer of the resolver looks as if it
 * came from whom the program asked.
 */
static __always_inline int mg_as_asked_v4(struct bpf_sock_addr *ctx)
{
	const struct mg_leaf *leaf = mg_leaf_here();
	const struct mg_target *asked;
	struct mg_target peer;

	if (!mg_is_live(leaf))
		return MG_PASS;
	mg_target_v4(&peer, ctx->user_ip4);
	mg_ports(ctx, &peer);
	asked = mg_asked(ctx, leaf, &peer);
	if (asked) {
		ctx->user_ip4 = asked->words[3];
		ctx->user_port = bpf_htons(MG_DNS_PORT);
	}
	return MG_PASS;
}

static __always_inline int mg_as_asked_v6(struct bpf_sock_addr *ctx)
{
	const struct mg_leaf *leaf = mg_leaf_here();
	const struct mg_target *asked;
	struct mg_target peer;

	if (!mg_is_live(leaf))
		return MG_PASS;
	mg_read_v6(ctx, &peer);
	asked = mg_asked(ctx, leaf, &peer);
	if (asked)
		mg_write_v6(ctx, asked);
	return MG_PASS;
}

SEC("cgroup/recvmsg4")
int mg_recvmsg4(struct bpf_sock_addr *ctx)
{
	return mg_as_asked_v4(ctx);
}

SEC("cgroup/recvmsg6")
int mg_recvmsg6(struct bpf_sock_addr *ctx)
{
	return mg_as_asked_v6(ctx);
}

SEC("cgroup/getpeername4")
int mg_getpeername4(struct bpf_sock_addr *ctx)
{
	return mg_as_asked_v4(ctx);
}

SEC("cgroup/getpeername6")
int mg_getpeername6(struct bpf_sock_addr *ctx)
{
	return mg_as_asked_v6(ctx);
}

/* --- own addresses -------------------------------------------------------------------------------------------- */

/* A wildcard bind without a port is what clients do before they connect: it opens nothing that an unbound socket would
 * not. Whether somebody may come in on the port that the kernel picks is asked for each incoming connection, below.
 */
static __always_inline int mg_harmless_bind(const struct mg_target *target)
{
	return !target->port && mg_is_any(target);
}

/* What one set of tables says of a place to listen; all addresses of IPv4 become the loopback where a rule allows only that. */
static __always_inline void mg_ask_bind_v4(__u32 slot, struct mg_target *target, struct mg_answer *answer)
{
	struct mg_target loopback = *target;
	struct mg_answer narrow;

	mg_match(slot, MG_TABLE_LISTEN, target, answer);
	if (answer->verdict || target->words[3])
		return;
	loopback.words[3] = bpf_htonl(INADDR_LOOPBACK);
	mg_match(slot, MG_TABLE_LISTEN, &loopback, &narrow);
	if (narrow.verdict != MG_ALLOW)
		return;
	*target = loopback;
	*answer = narrow;
	answer->detail = MG_DETAIL_NARROWED;
}

static __always_inline int mg_finish_bind(const struct mg_leaf *leaf, struct mg_socket *socket, __u32 keeper,
					  const struct mg_target *target, struct mg_answer *answer, struct mg_answer *kept)
{
	mg_settle(leaf, 0, 0, answer);
	mg_settle(leaf, keeper, 0, kept);
	mg_join(answer, kept);
	if (answer->verdict != MG_DENY && socket)
		socket->serves = 1;
	mg_report(&leaf->session, target, answer, MG_NET_BIND, 0);
	return answer->verdict == MG_DENY ? MG_BLOCK : MG_PASS;
}

SEC("cgroup/bind4")
int mg_bind4(struct bpf_sock_addr *ctx)
{
	const struct mg_leaf *leaf = mg_leaf_here();
	struct mg_answer answer, kept = { .verdict = MG_ALLOW };
	struct mg_target asked, target;
	struct mg_socket *socket;
	__u32 keeper;

	if (!mg_is_live(leaf))
		return MG_BLOCK;
	socket = mg_socket_of(ctx, leaf);
	keeper = mg_keep(leaf, socket);
	mg_target_v4(&target, ctx->user_ip4);
	mg_ports(ctx, &target);
	if (mg_harmless_bind(&target))
		return MG_PASS;
	asked = target;
	mg_ask_bind_v4(leaf->session.slot, &target, &answer);
	if (keeper)
		mg_ask_bind_v4(keeper, &target, &kept);
	if (!mg_same_address(&asked, &target))
		ctx->user_ip4 = target.words[3];
	return mg_finish_bind(leaf, socket, keeper, &asked, &answer, &kept);
}

/* Is it an IPv6 socket that takes IPv4, too? What cannot be told does not. */
static __always_inline int mg_takes_ipv4(struct bpf_sock_addr *ctx)
{
	struct sock *sk = 0;

	if (!ctx->sk)
		return 0;
	if (mg_protocol_mask(ctx->protocol) == MG_UDP)
		sk = (struct sock *)bpf_skc_to_udp6_sock(ctx->sk);
	else
		sk = (struct sock *)bpf_skc_to_tcp6_sock(ctx->sk);
	return sk && !BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_ipv6only);
}

/* As mg_ask_bind_v4; a dual-stack wildcard becomes the IPv4 loopback when a rule allows that, else the IPv6 one. */
static __always_inline void mg_ask_bind_v6(__u32 slot, int takes_ipv4, struct mg_target *target, struct mg_answer *answer)
{
	struct mg_target loopback = *target;
	struct mg_answer narrow = {};

	mg_match(slot, MG_TABLE_LISTEN, target, answer);
	if (answer->verdict || !mg_is_any(target))
		return;
	if (takes_ipv4) {
		mg_target_v4(&loopback, bpf_htonl(INADDR_LOOPBACK));
		mg_match(slot, MG_TABLE_LISTEN, &loopback, &narrow);
	}
	if (narrow.verdict != MG_ALLOW) {
		loopback.words[2] = 0;
		loopback.words[3] = bpf_htonl(1);
		mg_match(slot, MG_TABLE_LISTEN, &loopback, &narrow);
	}
	if (narrow.verdict != MG_ALLOW)
		return;
	*target = loopback;
	*answer = narrow;
	answer->detail = MG_DETAIL_NARROWED;
}

SEC("cgroup/bind6")
int mg_bind6(struct bpf_sock_addr *ctx)
{
	const struct mg_leaf *leaf = mg_leaf_here();
	struct mg_answer answer, kept = { .verdict = MG_ALLOW };
	struct mg_target asked, target;
	struct mg_socket *socket;
	int takes_ipv4;
	__u32 keeper;

	if (!mg_is_live(leaf))
		return MG_BLOCK;
	socket = mg_socket_of(ctx, leaf);
	keeper = mg_keep(leaf, socket);
	mg_read_v6(ctx, &target);
	if (mg_harmless_bind(&target))
		return MG_PASS;
	asked = target;
	takes_ipv4 = mg_takes_ipv4(ctx);
	mg_ask_bind_v6(leaf->session.slot, takes_ipv4, &target, &answer);
	if (keeper)
		mg_ask_bind_v6(keeper, takes_ipv4, &target, &kept);
	if (!mg_same_address(&asked, &target)) {
		ctx->user_ip6[2] = target.words[2];
		ctx->user_ip6[3] = target.words[3];
	}
	return mg_finish_bind(leaf, socket, keeper, &asked, &answer, &kept);
}

/* --- sockets -------------------------------------------------------------------------------------------------- */

static __always_inline int mg_plain_socket(struct bpf_sock *ctx)
{
	if (ctx->type == MG_SOCK_STREAM)
		return !ctx->protocol || ctx->protocol == IPPROTO_TCP;
	return ctx->type == MG_SOCK_DGRAM && (!ctx->protocol || ctx->protocol == IPPROTO_UDP);
}

/* Only TCP and UDP have hooks for their destinations, so no other kind of socket may exist.
 *
 * MPTCP has them, too, but shares what is sent out over several streams, so that none of them holds a whole hello. Who asks
 * for it is told what a kernel without it says, and goes on with TCP.
 */
SEC("cgroup/sock_create")
int mg_sock_create(struct bpf_sock *ctx)
{
	const struct mg_leaf *leaf = mg_leaf_here();
	struct mg_answer answer = { .verdict = MG_DENY };
	struct mg_target none = {};
	struct mg_head head;
	struct mg_socket *socket;

	if (!mg_is_live(leaf))
		return MG_BLOCK;
	if (!mg_plain_socket(ctx)) {
		none.protocol = ctx->protocol;
		mg_report(&leaf->session, &none, &answer, MG_NET_SOCKET, 0);
		if (none.protocol == MG_IPPROTO_MPTCP)
			bpf_set_retval(-MG_EPROTONOSUPPORT);
		return MG_BLOCK;
	}
	socket = bpf_sk_storage_get(&mg_sockets, ctx, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket)
		return MG_BLOCK;
	mg_fill_head(&head, 0);
	socket->leaf = leaf->id;
	socket->kept = mg_kept_now(leaf);
	socket->owner.pid = head.pid;
	socket->owner.tid = head.tid;
	socket->owner.ppid = head.ppid;
	__builtin_memcpy(socket->owner.comm, head.comm, sizeof(head.comm));
	return MG_PASS;
}

/* --- packets -------------------------------------------------------------------------------------------------- */

struct mg_packet {
	struct mg_target from;
	struct mg_target to;
	/* TCP: */
	__u32 sequence;
	__u32 data;	/* where it begins in the packet */
	__u8 opens;	/* asks for a new connection */
	__u8 urgent;
};

/* Fill `packet`; 0: not a plain TCP or UDP packet (options, extension headers, fragments, other protocols). */
static __always_inline int mg_parse(struct __sk_buff *skb, struct mg_packet *packet)
{
	struct ipv6hdr ip6;
	struct iphdr ip4;
	__u16 ports[2];
	__u32 offset, sequence;
	__u8 words[2];	/* length of the header, flags */

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, 0, &ip4, sizeof(ip4)) || ip4.ihl != 5 ||
		    (ip4.frag_off & bpf_htons(0x1fff)))
			return 0;
		mg_target_v4(&packet->from, ip4.saddr);
		mg_target_v4(&packet->to, ip4.daddr);
		packet->to.protocol = ip4.protocol;
		offset = sizeof(ip4);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, 0, &ip6, sizeof(ip6)))
			return 0;
		__builtin_memcpy(packet->from.bytes, &ip6.saddr, sizeof(packet->from.bytes));
		__builtin_memcpy(packet->to.bytes, &ip6.daddr, sizeof(packet->to.bytes));
		packet->to.protocol = ip6.nexthdr;
		offset = sizeof(ip6);
	} else {
		return 0;
	}
	packet->from.protocol = packet->to.protocol;
	if (!mg_protocol_mask(packet->to.protocol) || bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)))
		return 0;
	packet->from.port = bpf_ntohs(ports[0]);
	packet->to.port = bpf_ntohs(ports[1]);
	if (packet->to.protocol != IPPROTO_TCP)
		return 1;
	if (bpf_skb_load_bytes(skb, offset + 4, &sequence, sizeof(sequence)) ||
	    bpf_skb_load_bytes(skb, offset + 12, words, sizeof(words)))
		return 0;
	packet->sequence = bpf_ntohl(sequence);
	packet->data = offset + (words[0] >> 4) * 4;
	packet->opens = (words[1] & 0x12) == 0x02; /* SYN without ACK */
	packet->urgent = !!(words[1] & 0x20);
	return 1;
}

/* Is it on its way from this host to this host? Everybody may bind a socket to an address that the host does not have
 * (IP_FREEBIND), and send in its name, so neither says whose the address is; the way does.
 */
static __always_inline int mg_stays_here(const struct __sk_buff *skb)
{
	return skb->ifindex == MG_LOOPBACK_DEVICE;
}

/* Does a datagram to this host say that it comes from another address than its socket has? The kernel lets everybody (IP_PKTINFO),
 * and whoever it reaches would answer, or believe, somebody else at that port.
 */
static __always_inline int mg_lies(const struct __sk_buff *skb, struct bpf_sock *sk, const struct mg_packet *packet)
{
	struct mg_target bound;

	if (packet->to.protocol == IPPROTO_TCP || !mg_stays_here(skb))
		return 0;
	mg_bound(sk, mg_is_v4(&packet->from), &bound);
	return !mg_is_any(&bound) && !mg_same_address(&bound, &packet->from);
}

/* May a packet that no rule names leave? The peer was approved at connect, or began the conversation itself, or is a socket as
 * `own` says (enum mg_own, or-ed).
 */
static __always_inline int mg_expected(struct __sk_buff *skb, const struct mg_leaf *leaf, struct bpf_sock *sk,
				       struct mg_socket *socket, const struct mg_packet *packet, int own)
{
	if (socket && socket->approved && mg_same_peer(&socket->peer, &packet->to))
		return !socket->own || mg_stays_here(skb);
	if (packet->to.protocol == IPPROTO_TCP) {
		/* Without connect, which was judged, a TCP socket sends only to who connected to it. */
		if (sk->state == MG_STATE_LISTEN || (socket && socket->serves))
			return 1;
	} else if (mg_asked_before(leaf, bpf_get_socket_cookie(skb), socket ? socket->kept : 0, &packet->to)) {
		return 1;
	}
	return mg_stays_here(skb) &&
	       (MG_OWN(leaf, socket ? socket->kept : 0, skb, &packet->from, &packet->to) & own) == own;
}


/* Of a tree that has ended, connections that were approved may send what they still hold, and close. No rules are left to hold
 * a host against, so one that has not named its host yet says nothing more.
 */
static __always_inline int mg_may_finish(struct __sk_buff *skb, const struct mg_leaf *leaf, struct bpf_sock *sk,
					 const struct mg_socket *socket, const struct mg_packet *packet)
{
	struct mg_stream *stream;

	if (!(leaf->session.flags & MG_SESSION_ENDED) || !socket || packet->to.protocol != IPPROTO_TCP || packet->opens)
		return 0;
	stream = packet->data < skb->len ? bpf_sk_storage_get(&mg_first_bytes, sk, 0, 0) : 0;
	if (stream && stream->state != MG_READS_DONE)
		return 0;
	return socket->serves || (socket->approved && mg_same_peer(&socket->peer, &packet->to));
}

static __always_inline int mg_refuse_packet(const struct mg_leaf *leaf, const struct mg_target *target,
					    struct mg_answer answer, __u8 op, struct mg_socket *socket)
{
	struct mg_owner unknown = {};

	mg_report(&leaf->session, target, &answer, op, socket ? &socket->owner : &unknown);
	return answer.verdict == MG_DENY ? MG_BLOCK : MG_PASS;
}

/* What goes to an address of a name must name a host that the rules allow; `named` and `kept_named` are why it may go there at
 * all, as in mg_answer.
 */
static __always_inline int mg_let_out(struct __sk_buff *skb, const struct mg_leaf *leaf, struct bpf_sock *sk,
				      struct mg_socket *socket, const struct mg_packet *packet, __u8 named, __u8 kept_named)
{
	__u32 keeper = socket ? socket->kept : 0;
	__u8 asked = 0;

	if (packet->to.protocol != IPPROTO_TCP) {
		struct mg_answer answer = { .verdict = MG_ALLOW, .named = named };
		struct mg_answer kept = { .verdict = MG_ALLOW, .named = kept_named };

		if (named)
			mg_judge_datagram(&leaf->session, 0, &packet->to, &answer);
		if (kept_named)
			mg_judge_datagram(&leaf->session, keeper, &packet->to, &kept);
		mg_join(&answer, &kept);
		return answer.verdict == MG_ALLOW ? MG_PASS :
						    mg_refuse_packet(leaf, &packet->to, answer, MG_NET_PACKET, socket);
	}
	if (packet->opens) {
		if (named && mg_without_host(leaf->session.slot))
			asked |= MG_ASKED_SESSION;
		if (kept_named && mg_without_host(keeper))
			asked |= MG_ASKED_KEPT;
		if (!asked) {
			bpf_sk_storage_delete(&mg_first_bytes, sk);
			return MG_PASS;
		}
		if (!mg_begin_stream(sk, packet->sequence + 1, asked, keeper))
			return MG_BLOCK;
	}
	if (packet->data >= skb->len)
		return MG_PASS;
	struct mg_piece piece = {
		.sequence = packet->sequence + packet->opens,
		.data = packet->data,
		.urgent = packet->urgent,
	};
	return mg_look_at(skb, &leaf->session, &piece, &packet->to, socket ? &socket->owner : 0) ? MG_PASS : MG_BLOCK;
}

static __always_inline int mg_judge_packet(struct __sk_buff *skb, const struct mg_leaf *leaf, struct bpf_sock *sk,
					   struct mg_socket *socket, const struct mg_packet *packet)
{
	struct mg_answer answer = {}, kept = {};
	__u32 keeper = socket ? socket->kept : 0;
	int own, named;

	mg_ask(leaf->session.slot, keeper, &packet->to, &answer, &kept);
	if (answer.verdict == MG_ALLOW && kept.verdict == MG_ALLOW) {
		if (!answer.named && !kept.named && !packet->opens)
			return MG_PASS;
		return mg_let_out(skb, leaf, sk, socket, packet, answer.named, kept.named);
	}
	if (answer.verdict != MG_DENY && kept.verdict != MG_DENY) {
		own = (answer.verdict ? 0 : MG_OWN_TREE) | (kept.verdict ? 0 : MG_OWN_KEPT);
		if (mg_expected(skb, leaf, sk, socket, packet, own)) {
			/* Let through at connect because of a name, perhaps, which may have grown too old since. */
			named = mg_was_approved(socket, &packet->to);
			return mg_let_out(skb, leaf, sk, socket, packet, named && socket ? socket->named : 0,
					  named && socket ? socket->kept_named : 0);
		}
	}
	mg_settle(leaf, 0, 0, &answer);
	mg_settle(leaf, keeper, 0, &kept);
	mg_join(&answer, &kept);
	return mg_refuse_packet(leaf, &packet->to, answer, MG_NET_PACKET, socket);
}

/* Count a packet that goes through, with the other end of it, and with the port of this end where others came to us. */
static __always_inline void mg_count_packet(struct __sk_buff *skb, const struct mg_leaf *leaf, const struct mg_socket *socket,
					    const struct mg_target *other, __u16 own_port, __u32 received)
{
	struct mg_target peer = *other;
	__u32 op = MG_NET_CONNECT;

	if (socket && socket->serves && !(socket->approved && mg_same_peer(&socket->peer, other))) {
		peer.port = own_port;
		op = MG_NET_ACCEPT;
	}
	mg_count_bytes(&leaf->session, &peer, op, skb->len, received);
}

/* Note that the end of a connection which this packet opens is the session's own; `received`: the end that is asked. */
static __always_inline void mg_note_end(const struct mg_leaf *leaf, struct bpf_sock *sk, const struct mg_packet *packet, int received)
{
	struct sock *opened = sk ? (struct sock *)bpf_skc_to_tcp_sock(sk) : 0;
	struct mg_own_end asking = {}, asked = {};
	const __u32 *began;

	/* What stands on other addresses is nowhere told of. */
	if (!opened || !mg_is_loopback(&packet->from) || !mg_is_loopback(&packet->to))
		return;
	asking.net = mg_net_of(opened);
	asking.slot = leaf->session.slot;
	asking.address = asked.far_address = packet->from.words[3];
	asking.far_address = asked.address = packet->to.words[3];
	asking.port = asked.far_port = packet->from.port;
	asking.far_port = asked.port = packet->to.port;
	asked.net = asking.net;
	asked.slot = asking.slot;
	if (received) {
		began = bpf_map_lookup_elem(&mg_own_ends, &asking);
		if (began && *began != packet->sequence)
			bpf_map_delete_elem(&mg_own_ends, &asking);
		bpf_map_update_elem(&mg_own_ends, &asked, &packet->sequence, BPF_ANY);
	} else {
		bpf_map_delete_elem(&mg_own_ends, &asked);
		bpf_map_update_elem(&mg_own_ends, &asking, &packet->sequence, BPF_ANY);
	}
}

/* Backstop behind the hooks above: whatever way a packet was made, it leaves only to where the tree may talk. */
SEC("cgroup_skb/egress")
int mg_egress(struct __sk_buff *skb)
{
	const struct mg_leaf *leaf = mg_leaf_here();
	struct mg_packet packet = {};
	struct mg_socket *socket = 0;
	struct bpf_sock *sk = skb->sk;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (sk)
		socket = bpf_sk_storage_get(&mg_sockets, sk, 0, 0);
	if (!sk || !mg_parse(skb, &packet)) {
		struct mg_answer answer = { .verdict = MG_DENY };

		return mg_refuse_packet(leaf, &packet.to, answer, MG_NET_PACKET, socket);
	}
	if (!mg_is_live(leaf))
		return mg_may_finish(skb, leaf, sk, socket, &packet) ? MG_PASS : MG_BLOCK;
	if (mg_lies(skb, sk, &packet)) {
		struct mg_answer answer = {};

		mg_default(leaf->session.flags, 0, &answer);
		if (mg_refuse_packet(leaf, &packet.to, answer, MG_NET_PACKET, socket) == MG_BLOCK)
			return MG_BLOCK;
	}
	if (mg_is_resolver(leaf, &packet.to)) {
		mg_note_question(leaf, socket, &packet.from);
		return MG_PASS;
	}
	if (mg_is_foreign_resolver(leaf, &packet.to)) {
		struct mg_answer answer = { .verdict = MG_DENY, .detail = MG_DETAIL_RESOLVER };

		return mg_refuse_packet(leaf, &packet.to, answer, MG_NET_PACKET, socket);
	}
	if (mg_judge_packet(skb, leaf, sk, socket, &packet) == MG_BLOCK)
		return MG_BLOCK;
	if (packet.opens)
		mg_note_end(leaf, sk, &packet, 0);
	mg_count_packet(skb, leaf, socket, &packet.to, packet.from.port, 0);
	return MG_PASS;
}

/* A packet that was refused is tried again and again, for a quarter of an hour. When the kernel makes one anew for a stream that
 * says nothing more, that stream gets no time: its program hears of it within a second.
 */
SEC("sockops")
int mg_tcp_events(struct bpf_sock_ops *ops)
{
	struct mg_socket *socket;
	struct mg_stream *stream;
	int shortest_ms = 1;

	ops->reply = -1; /* what is asked of us here is the kernel's to say */
	if (!ops->sk)
		return 1;
	if (ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		socket = bpf_sk_storage_get(&mg_sockets, ops->sk, 0, 0);
		if (socket && (socket->named || socket->kept_named))
			bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
	} else if (ops->op == BPF_SOCK_OPS_HDR_OPT_LEN_CB) {
		stream = bpf_sk_storage_get(&mg_first_bytes, ops->sk, 0, 0);
		if (stream && stream->state == MG_READS_REFUSED)
			bpf_setsockopt(ops, IPPROTO_TCP, TCP_USER_TIMEOUT, &shortest_ms, sizeof(shortest_ms));
		else if (stream && stream->state == MG_READS_DONE)
			bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
	}
	return 1;
}

/* Whoever sends a datagram to a socket that serves gets an answer. From this host that is one of its own addresses: the tree can
 * write any other one into an IPv6 datagram, and would open it so.
 */
static __always_inline void mg_remember_asker(struct __sk_buff *skb, const struct mg_leaf *leaf,
					      const struct mg_socket *socket, const struct mg_packet *packet)
{
	if (packet->to.protocol == IPPROTO_TCP || !socket->serves)
		return;
	if (mg_stays_here(skb) && !mg_is_loopback(&packet->from) && !mg_same_address(&packet->from, &packet->to))
		return;
	mg_remember_peer(leaf, bpf_get_socket_cookie(skb), socket->kept, &packet->from);
}

/* listen() binds an unbound socket without any hook, so who may connect is asked when somebody does. */
SEC("cgroup_skb/ingress")
int mg_ingress(struct __sk_buff *skb)
{
	const struct mg_leaf *leaf = mg_leaf_here();
	struct mg_packet packet = {};
	struct mg_socket *socket = 0;
	struct bpf_sock *sk = skb->sk;
	struct mg_answer answer, kept = { .verdict = MG_ALLOW };
	__u32 keeper;
	int own;

	if (!mg_is_live(leaf) && !(leaf->session.flags & MG_SESSION_ENDED))
		return MG_BLOCK;
	if (!mg_parse(skb, &packet))
		return MG_PASS;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!packet.opens) {
		if (sk)
			socket = bpf_sk_storage_get(&mg_sockets, sk, 0, 0);
		if (socket && !mg_is_resolver(leaf, &packet.from)) {
			mg_count_packet(skb, leaf, socket, &packet.from, packet.to.port, 1);
			mg_remember_asker(skb, leaf, socket, &packet);
		}
		return MG_PASS;
	}
	if (!mg_is_live(leaf))
		return MG_BLOCK;
	if (sk)
		socket = bpf_sk_storage_get(&mg_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (socket)
		socket->leaf = leaf->id;
	mg_note_end(leaf, sk, &packet, 1);
	keeper = socket ? socket->kept : 0;
	mg_match(leaf->session.slot, MG_TABLE_LISTEN, &packet.to, &answer);
	if (keeper)
		mg_match(keeper, MG_TABLE_LISTEN, &packet.to, &kept);
	if (!answer.verdict || !kept.verdict) {
		own = MG_OWN(leaf, keeper, skb, &packet.to, &packet.from);
		mg_settle(leaf, 0, own & MG_OWN_TREE, &answer);
		/* Of the tree the agent may come, and who is kept to the same. */
		mg_settle(leaf, keeper, own & (MG_OWN_KEPT | MG_OWN_AGENT), &kept);
	}
	mg_join(&answer, &kept);
	if (answer.verdict == MG_ALLOW) {
		if (socket)
			socket->serves = 1;
		mg_count_packet(skb, leaf, socket, &packet.from, packet.to.port, 1);
		return MG_PASS;
	}
	packet.from.port = packet.to.port; /* theirs is a new one each time, and would make each try a record of its own */
	return mg_refuse_packet(leaf, &packet.from, answer, MG_NET_ACCEPT, socket);
}
