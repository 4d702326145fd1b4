// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Verdicts on what is no file: other processes, namespaces and mounts, and the kernel itself.
 *
 * The record of system calls tells of most of these refusals. Calls that programs make all the time, and to which the kernel
 * itself often says no, are not on its list: what is refused here is told here.
 */
#include "mg_judge.h"
#include "mg_refused.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum { MG_F_SETOWN = 8, MG_F_SETOWN_EX = 15, MG_F_SETSIG = 10 };

/* Refuse, and put the call that the thread is in on record. */
static __always_inline int mg_refuse_told(const struct mg_session *session)
{
	mg_tell_own_call(session, MG_EPERM, MG_CALL_PROCESS);
	return -MG_EPERM;
}

#define MG_OWN_TREE_ONLY_OF(hook, function)						\
	MG_HOOK_OF(hook, function)							\
	{										\
		return mg_guarded() && !mg_is_own_task(mg_given(ctx, 0)) ? -MG_EPERM : 0; \
	}

/* The same for calls that are on no list. */
#define MG_OWN_TREE_ONLY_TOLD(hook)							\
	MG_HOOK(hook)									\
	{										\
		const struct mg_session *session = mg_guarded();			\
											\
		return session && !mg_is_own_task(mg_given(ctx, 0)) ? mg_refuse_told(session) : 0; \
	}

#define MG_OWN_TREE_ONLY(hook) MG_OWN_TREE_ONLY_OF(hook, security_##hook)

MG_OWN_TREE_ONLY(ptrace_access_check)
MG_OWN_TREE_ONLY(ptrace_traceme)
MG_OWN_TREE_ONLY(task_kill)
MG_OWN_TREE_ONLY_TOLD(task_setnice)
MG_OWN_TREE_ONLY_TOLD(task_setioprio)
MG_OWN_TREE_ONLY_TOLD(task_setscheduler)
MG_OWN_TREE_ONLY_TOLD(task_movememory)

/* Who may send a signal when a file is ready is checked by user alone, so nobody else may be named. */
MG_HOOK(file_fcntl)
{
	const struct mg_session *session = mg_guarded();
	__u32 command;
	__s32 pid;

	if (!session)
		return 0;
	command = mg_given(ctx, 1);
	if (command == MG_F_SETOWN_EX)
		return mg_refuse_told(session);
	if (command != MG_F_SETOWN)
		return 0;
	pid = mg_given(ctx, 2);
	return !pid || pid == (__s32)(bpf_get_current_pid_tgid() >> 32) ? 0 : mg_refuse_told(session);
}

#define MG_NEVER_OF(hook, function)			\
	MG_HOOK_OF(hook, function)			\
	{						\
		return mg_guarded() ? -MG_EPERM : 0;	\
	}

#define MG_NEVER(hook) MG_NEVER_OF(hook, security_##hook)

#define MG_ONLY_WITH_OF(hook, function, flag)						\
	MG_HOOK_OF(hook, function)							\
	{										\
		struct mg_session *session = mg_guarded();				\
											\
		return session && !(session->flags & flag) ? -MG_EPERM : 0;		\
	}

#define MG_ONLY_WITH(hook, flag) MG_ONLY_WITH_OF(hook, security_##hook, flag)

MG_NEVER(bpf)
MG_NEVER(perf_event_open)
MG_NEVER(kernel_module_request)
MG_NEVER(kernel_load_data)
MG_NEVER(uring_override_creds)
MG_NEVER(uring_cmd)
MG_ONLY_WITH(uring_sqpoll, MG_SESSION_IO_URING)
MG_ONLY_WITH(uring_allowed, MG_SESSION_IO_URING)

/* Inside a user namespace of the tree mounts move names around, and verdicts do not depend on those. */
MG_ONLY_WITH_OF(userns_create, security_create_user_ns, MG_SESSION_NAMESPACES)
MG_ONLY_WITH(sb_mount, MG_SESSION_NAMESPACES)
MG_ONLY_WITH(sb_remount, MG_SESSION_NAMESPACES)
MG_ONLY_WITH(sb_umount, MG_SESSION_NAMESPACES)
MG_ONLY_WITH(sb_pivotroot, MG_SESSION_NAMESPACES)
MG_ONLY_WITH(move_mount, MG_SESSION_NAMESPACES)
MG_ONLY_WITH(path_chroot, MG_SESSION_NAMESPACES)
