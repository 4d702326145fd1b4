/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The name of doctor's canary, and the verdict on it; the same text is in session/rehearse.py. */
#ifndef MG_CANARY_H
#define MG_CANARY_H

#define MG_CANARY_NAME "mcpguard-canary"	/* 15 characters: all that the kernel keeps */
#define MG_EPERM 1

static __always_inline int mg_canary_verdict(void)
{
	static const char name[] = MG_CANARY_NAME;
	char comm[sizeof(name)];
	unsigned int i;

	if (bpf_get_current_comm(comm, sizeof(comm)))
		return 0;
	for (i = 0; i < sizeof(name); i++)
		if (comm[i] != name[i])
			return 0;
	return -MG_EPERM;
}

#endif
