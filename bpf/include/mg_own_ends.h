/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which ends of TCP connections on loopback are a session's own, by the packets that opened them.
 *
 * Between two of these each message is told where it is sent. The packets are seen before anything can be received, and in their
 * order, so nobody has to wait and see whether the other end is told of, too. An end is noted by the number of its packet: what is
 * left of an earlier connection between the same ports has another one.
 */
#ifndef MG_OWN_ENDS_H
#define MG_OWN_ENDS_H

#include "mg_kernel.h"

/* Of an address its last word, in network byte order: on loopback it says all. */
struct mg_own_end {
	__u64 net;	/* a process may make a network of its own, with the same addresses */
	__u32 slot;
	__u32 address;
	__u32 far_address;
	__u16 port;	/* host byte order */
	__u16 far_port;
};

/* The oldest make room: what is received from an end that is forgotten may be told a second time. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct mg_own_end);
	__type(value, __u32);
} mg_own_ends SEC(".maps");

static __always_inline __u64 mg_net_of(struct sock *sk)
{
	return (__u64)BPF_CORE_READ(sk, __sk_common.skc_net.net);
}

#endif
