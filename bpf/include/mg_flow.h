/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How many bytes went to and came from whom. No verdict asks for it. */
#ifndef MG_FLOW_H
#define MG_FLOW_H

#include "mg_net.h"

/* Nothing makes room: what finds none is counted under the key of zeroes, so the sum is right. */
struct mg_flows_of_one {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MG_FLOWS_LIMIT);
	__uint(key_size, sizeof(struct mg_flow_key));
	__uint(value_size, sizeof(struct mg_flow));
};

MG_PER_SLOT(mg_flows, struct mg_flows_of_one);

static __always_inline struct mg_flow *mg_flow_of(void *flows, const struct mg_flow_key *key)
{
	struct mg_flow *flow = bpf_map_lookup_elem(flows, key);
	struct mg_flow none = {};

	if (flow)
		return flow;
	bpf_map_update_elem(flows, key, &none, BPF_NOEXIST); /* another CPU may have made it meanwhile */
	return bpf_map_lookup_elem(flows, key);
}

/* Count a packet that went through.
 *
 * `peer` is the other end; its port is that of this end where others came to the tree (`op` MG_NET_ACCEPT), for theirs is a new
 * one each time.
 */
__noinline int mg_count_bytes(const struct mg_session *session, const struct mg_target *peer, __u32 op, __u32 bytes, __u32 received)
{
	struct mg_flow_key rest = {};
	struct mg_flow_key key = {};
	struct mg_flow *flow;
	void *flows;

	if (!session || !peer)
		return 0;
	flows = mg_of_slot(&mg_flows, session->slot);
	if (!flows)
		return 0;
	__builtin_memcpy(key.address, peer->bytes, sizeof(key.address));
	key.port = peer->port;
	key.protocol = peer->protocol;
	key.op = op;
	flow = bpf_map_lookup_elem(flows, &key);
	if (!flow) {
		mg_flow_of(flows, &rest); /* while there is room for it */
		flow = mg_flow_of(flows, &key);
	}
	if (!flow)
		flow = bpf_map_lookup_elem(flows, &rest);
	if (!flow)
		return 0;
	if (received)
		__sync_fetch_and_add(&flow->received, bytes);
	else
		__sync_fetch_and_add(&flow->sent, bytes);
	return 0;
}

#endif
