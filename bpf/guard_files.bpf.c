// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Verdicts on files: opened, received, mapped as code, changed, renamed, linked, watched.
 *
 * Each hook asks the same: whose act, what is asked, of what object; then `mg_judge.h` decides and answers. Hooks that a kernel
 * lacks are left out by the loader; without the path_* hooks (CONFIG_SECURITY_PATH) it takes the inode_* ones in their place.
 */
#include "mg_judge.h"
#include "mg_refused.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum {
	MG_O_TRUNC = 01000,
	MG_PROT_READ = 1,
	MG_PROT_EXEC = 4,
	MG_READ_IMPLIES_EXEC = 0x400000,
	MG_S_IFMT = 0xf000,
	MG_S_IFDIR = 0x4000,
	MG_RENAME_EXCHANGE = 2,
	MG_ATTR_MODE = 1 << 0,
	MG_ATTR_UID = 1 << 1,
	MG_ATTR_GID = 1 << 2,
	MG_ATTR_SIZE = 1 << 3,
	MG_ATTR_FORCE = 1 << 9,
	MG_ATTR_BY_PATH = MG_ATTR_MODE | MG_ATTR_UID | MG_ATTR_GID | MG_ATTR_SIZE,
};

/* Set by the loader before load: where this kernel's hooks have what, and which set of hooks is in use. */
const volatile struct {
	__u32 setattr_dentry;	/* place of the dentry among the arguments of inode_setattr */
	__u32 inode_hooks;	/* 1: there are no path_* hooks */
} mg_layout SEC(".rodata.layout") = { .setattr_dentry = 1 };

/* --- opening -------------------------------------------------------------------------------------------------- */

static __always_inline __u32 mg_mode_access(__u32 mode)
{
	__u32 access;

	access = (mode & MG_FMODE_READ ? MG_READ : 0) | (mode & MG_FMODE_WRITE ? MG_WRITE : 0);
	return access ? access : MG_READ; /* for its ioctl commands only */
}

/* Does a file of /proc show a process that is not of the caller's tree? Such a file has the number of a process, also of one that
 * has ended.
 */
static __always_inline int mg_shows_outsider(__u64 dentry_address)
{
	struct dentry *dentry = (void *)dentry_address;
	struct hlist_node *first;
	struct inode *inode;
	struct pid *pid;

	if (BPF_CORE_READ(dentry, d_sb, s_magic) != MG_MAGIC_PROC)
		return 0;
	inode = BPF_CORE_READ(dentry, d_inode);
	if (!inode)
		return 0;
	pid = BPF_CORE_READ(mg_proc_inode_of(inode), pid);
	if (!pid)
		return 0;
	first = BPF_CORE_READ(pid, tasks[MG_PIDTYPE_PID].first);
	return !first || !mg_is_own_task((__u64)mg_task_of_pid_link(first));
}

/* A rule on /proc names the files of all processes, and the kernel asks of some who the user is and no more (`uid_map`). What is
 * written there changes a process, so it must be one of the tree.
 */
static __always_inline int mg_ask_of_process(const struct mg_session *session, __u64 dentry, __u32 access, __u8 op)
{
	if (!(access & MG_WRITE) || !mg_shows_outsider(dentry))
		return 0;
	return mg_deny_file(session, dentry, 0, 0, op, MG_WRITE, MG_DETAIL_OUTSIDER, 0);
}

MG_HOOK(file_open)
{
	struct mg_session *session = mg_guarded_itself();
	struct file *file;
	__u32 flags, access;
	__u64 dentry;
	int answer;

	if (!session)
		return 0;
	file = (void *)ctx[0];
	flags = file->f_flags;
	access = flags & MG_OPEN_FOR_EXEC ? MG_EXECUTE : mg_mode_access(file->f_mode);
	if (flags & MG_O_TRUNC)
		access |= MG_WRITE;
	dentry = mg_dentry_of_file((__u64)file);
	if (access & MG_EXECUTE && mg_is_internal(dentry) && !(session->flags & MG_SESSION_MEMORY_PROGRAMS)) {
		mg_speak();
		return mg_deny_file(session, dentry, 0, 0, MG_OP_EXEC, MG_EXECUTE, MG_DETAIL_MEMORY, 0);
	}
	answer = mg_ask_by_path(session, dentry, access, access & MG_EXECUTE ? MG_OP_EXEC : MG_OP_OPEN);
	if (answer)
		return answer;
	answer = mg_ask_of_process(session, dentry, access, MG_OP_OPEN);
	if (answer)
		mg_speak();
	return answer;
}

/* A descriptor that another process sends: the sender's right to open it is not the receiver's. */
MG_HOOK(file_receive)
{
	struct mg_session *session = mg_guarded();
	struct file *file;
	__u32 access;
	__u64 dentry;
	int answer;

	if (!session)
		return 0;
	file = (void *)mg_given(ctx, 0);
	if (BPF_CORE_READ(file, f_mode) & MG_FMODE_PATH)
		return 0;
	dentry = mg_dentry_of_file((__u64)file);
	access = mg_mode_access(BPF_CORE_READ(file, f_mode));
	answer = mg_ask(session, dentry, access, MG_OP_RECEIVE, MG_DETAIL_RECEIVED);
	return answer ? answer : mg_ask_of_process(session, dentry, access, MG_OP_RECEIVE);
}

/* --- code ----------------------------------------------------------------------------------------------------- */

/* The session of a task that maps code, as the second argument of the hook says. Its personality can make code of all that it reads. */
static __always_inline struct mg_session *mg_maps_code(__u64 *ctx)
{
	struct mg_session *session = mg_guarded();
	__u64 protection = session ? mg_given(ctx, 1) : 0;

	if (!session || protection & MG_PROT_EXEC)
		return session;
	return protection & MG_PROT_READ && mg_current_task()->personality & MG_READ_IMPLIES_EXEC ? session : 0;
}

/* The loader can be asked to run any file, and a library can be loaded from anywhere: both map the file as code. */
static __always_inline int mg_map_code(const struct mg_session *session, __u64 dentry)
{
	return mg_ask(session, dentry, MG_EXECUTE, MG_OP_MAP, MG_DETAIL_MAPPED);
}

MG_HOOK(mmap_file)
{
	struct mg_session *session = mg_maps_code(ctx);
	__u64 file = session ? mg_given(ctx, 0) : 0;

	return file ? mg_map_code(session, mg_dentry_of_file(file)) : 0;
}

MG_HOOK(file_mprotect)
{
	struct mg_session *session = mg_maps_code(ctx);
	struct vm_area_struct *area;
	struct file *file;

	if (!session)
		return 0;
	area = (void *)mg_given(ctx, 0);
	file = BPF_CORE_READ(area, vm_file);
	return file ? mg_map_code(session, mg_dentry_of_file((__u64)file)) : 0;
}

/* --- names: made, removed, moved ------------------------------------------------------------------------------ */

static __always_inline int mg_change(const struct mg_session *session, __u64 *ctx, __u32 place, __u8 op)
{
	return session ? mg_ask_by_path(session, mg_given(ctx, place), MG_WRITE, op) : 0;
}

#define MG_CHANGES(hook, place, op)						\
	MG_HOOK(hook)								\
	{									\
		return mg_change(mg_guarded(), ctx, place, op);			\
	}

/* Unlike the path_* hooks these are asked again for the layers of a stacked file system. */
#define MG_CHANGES_INODE(hook, place, op)					\
	MG_HOOK(hook)								\
	{									\
		return mg_change(mg_guarded_itself(), ctx, place, op);		\
	}

MG_CHANGES(path_mknod, 1, MG_OP_MKNOD)
MG_CHANGES(path_mkdir, 1, MG_OP_MKDIR)
MG_CHANGES(path_symlink, 1, MG_OP_SYMLINK)
MG_CHANGES(path_unlink, 1, MG_OP_UNLINK)
MG_CHANGES(path_rmdir, 1, MG_OP_RMDIR)
MG_CHANGES_INODE(inode_create, 1, MG_OP_CREATE)
MG_CHANGES_INODE(inode_mknod, 1, MG_OP_MKNOD)
MG_CHANGES_INODE(inode_mkdir, 1, MG_OP_MKDIR)
MG_CHANGES_INODE(inode_symlink, 1, MG_OP_SYMLINK)
MG_CHANGES_INODE(inode_unlink, 1, MG_OP_UNLINK)
MG_CHANGES_INODE(inode_rmdir, 1, MG_OP_RMDIR)

/* A second name may not open the file wider than the first. */
static __always_inline int mg_linked(const struct mg_session *session, __u64 *ctx)
{
	__u32 missing, allowed;
	__u64 source, name;
	struct mg_seen seen;

	if (!session)
		return 0;
	source = mg_given(ctx, 0);
	name = mg_given(ctx, 2);
	mg_look_up(session->files, name, MG_WRITE, &seen);
	missing = mg_missing(session, &seen, MG_WRITE);
	if (missing) {
		mg_speak();
		return mg_deny_file(session, source, name, seen.rules[1], MG_OP_LINK, MG_WRITE, seen.detail, 1);
	}
	allowed = seen.allowed;
	mg_look_up(session->files, source, allowed, &seen);
	missing = mg_missing(session, &seen, allowed);
	if (!missing)
		return 0;
	mg_speak();
	return mg_deny_file(session, source, name, mg_rule_of(&seen, missing), MG_OP_LINK, missing,
			    seen.detail ? seen.detail : MG_DETAIL_WIDENS, 0);
}

MG_HOOK(path_link)
{
	return mg_linked(mg_guarded(), ctx);
}

MG_HOOK(inode_link)
{
	return mg_linked(mg_guarded_itself(), ctx);
}

static __always_inline int mg_is_directory(__u64 address)
{
	struct dentry *dentry = (void *)address;
	struct inode *inode = BPF_CORE_READ(dentry, d_inode);

	return inode && (BPF_CORE_READ(inode, i_mode) & MG_S_IFMT) == MG_S_IFDIR;
}

/* Both names change. A directory may only move where all that lies below it is judged as before. */
static __always_inline int mg_renamed(const struct mg_session *session, __u64 *ctx, __u8 op)
{
	struct mg_seen seen, other;
	__u64 old, new;

	old = mg_given(ctx, 1);
	new = mg_given(ctx, 3);
	if (!mg_look_up_both(session->files, old, new, &seen, &other)) {
		mg_look_up(session->files, old, MG_WRITE | MG_COMPARES, &seen);
		mg_look_up(session->files, new, MG_WRITE | MG_COMPARES, &other);
	}
	if (mg_missing(session, &seen, MG_WRITE)) {
		mg_speak();
		return mg_deny_file(session, old, new, seen.rules[1], op, MG_WRITE, seen.detail, 0);
	}
	if (mg_missing(session, &other, MG_WRITE)) {
		mg_speak();
		return mg_deny_file(session, old, new, other.rules[1], op, MG_WRITE, other.detail, 1);
	}
	if (seen.below == other.below || (!seen.pinned && !other.pinned) || (!mg_is_directory(old) && !mg_is_directory(new)))
		return 0;
	mg_speak();
	return mg_deny_file(session, old, new, 0, op, MG_WRITE, MG_DETAIL_BELOW, !seen.pinned);
}

MG_HOOK(path_rename)
{
	struct mg_session *session = mg_guarded();

	return session ? mg_renamed(session, ctx, mg_given(ctx, 4) & MG_RENAME_EXCHANGE ? MG_OP_EXCHANGE : MG_OP_RENAME) : 0;
}

/* Called once for each direction of an exchange. */
MG_HOOK(inode_rename)
{
	struct mg_session *session = mg_guarded_itself();

	return session ? mg_renamed(session, ctx, MG_OP_RENAME) : 0;
}

/* --- attributes ----------------------------------------------------------------------------------------------- */

static __always_inline int mg_change_at_path(__u64 *ctx, __u8 op)
{
	struct mg_session *session = mg_guarded();
	__u64 dentry;

	if (!session)
		return 0;
	dentry = mg_dentry_of_path(mg_given(ctx, 0));
	return mg_is_internal(dentry) ? 0 : mg_ask_by_path(session, dentry, MG_WRITE, op);
}

MG_HOOK(path_chmod)
{
	return mg_change_at_path(ctx, MG_OP_CHMOD);
}

MG_HOOK(path_chown)
{
	return mg_change_at_path(ctx, MG_OP_CHOWN);
}

MG_HOOK(path_truncate)
{
	return mg_change_at_path(ctx, MG_OP_TRUNCATE);
}

static __always_inline int mg_change_attribute(__u64 *ctx, __u32 place, __u8 op)
{
	struct mg_session *session = mg_guarded_itself();
	__u64 dentry;

	if (!session)
		return 0;
	dentry = mg_given(ctx, place);
	return mg_is_internal(dentry) ? 0 : mg_ask_by_path(session, dentry, MG_WRITE, op);
}

/* Times; and with path_* hooks missing, mode, owner and size. What the kernel itself corrects on the way (FORCE) is no request; but
 * it comes along with one when a file is truncated that has privileges.
 */
MG_HOOK(inode_setattr)
{
	__u32 place = mg_layout.setattr_dentry, valid;
	struct iattr *attributes;

	if (!mg_guarded())
		return 0;
	attributes = (void *)mg_given(ctx, place + 1);
	valid = BPF_CORE_READ(attributes, ia_valid);
	if (mg_layout.inode_hooks ? valid & MG_ATTR_FORCE && !(valid & MG_ATTR_SIZE) : valid & (MG_ATTR_FORCE | MG_ATTR_BY_PATH))
		return 0;
	return mg_change_attribute(ctx, place, valid & MG_ATTR_BY_PATH ? MG_OP_CHMOD : MG_OP_UTIMES);
}

#define MG_CHANGES_ATTRIBUTE(hook, place)					\
	MG_HOOK(hook)								\
	{									\
		return mg_change_attribute(ctx, place, MG_OP_XATTR);		\
	}

MG_CHANGES_ATTRIBUTE(inode_setxattr, 1)
MG_CHANGES_ATTRIBUTE(inode_removexattr, 1)
MG_CHANGES_ATTRIBUTE(inode_set_acl, 1)
MG_CHANGES_ATTRIBUTE(inode_remove_acl, 1)
MG_CHANGES_ATTRIBUTE(inode_file_setattr, 0)

/* --- commands on open files ----------------------------------------------------------------------------------- */

/* Groups of commands and what is in them; a command's size and direction differ between architectures. */
enum {
	MG_TIOCSTI = 0x5412,
	MG_TIOCLINUX = 0x541c,
	MG_FIOSETOWN = 0x8901,
	MG_SIOCSPGRP = 0x8902,
	MG_FSSETXATTR = 0x5820,
	MG_SETVERSION = 0x7602,
	MG_FAT_SET_ATTRIBUTES = 0x7211,
	MG_OCFS2_REFLINK = 0x6f04,	/* a copy under another name, and no other hook is asked */
	MG_OF_FILES = 'f',
	MG_GETFLAGS = 1,
	MG_EXT4_GETVERSION = 3,
	MG_EXT4_GETRSVSZ = 5,
	MG_FIEMAP = 11,
	MG_EXT4_PRECACHE = 18,
	MG_GET_ENCRYPTION_PWSALT = 20,	/* makes one where there is none */
	MG_GET_ENCRYPTION_POLICY = 21,
	MG_GET_ENCRYPTION_POLICY_EX = 22,
	MG_ADD_ENCRYPTION_KEY = 23,
	MG_REMOVE_ENCRYPTION_KEY = 24,
	MG_REMOVE_ENCRYPTION_KEY_ALL = 25,
	MG_GET_ENCRYPTION_KEY_STATUS = 26,
	MG_GET_ENCRYPTION_NONCE = 27,
	MG_EXT4_GETSTATE = 41,
	MG_EXT4_GET_CACHE = 42,
	MG_MEASURE_VERITY = 134,
	MG_READ_VERITY = 135,
	MG_F2FS = 0xf5,
	MG_F2FS_FEATURES = 12,
	MG_F2FS_GET_PIN = 14,
	MG_F2FS_GET_BLOCKS = 17,
	MG_F2FS_GET_OPTION = 22,
	MG_BCACHEFS = 0xbc,
	MG_BTRFS = 0x94,
	MG_FICLONE = 9,
	MG_FICLONERANGE = 13,
	MG_FIDEDUPERANGE = 54,
};

/* What changes a file, or how it is kept, needs no descriptor for writing. In groups that are about files alone, what only asks
 * is on the list.
 */
static __always_inline int mg_changes_file(__u32 group, __u32 number)
{
	switch (group << 8 | number) {
	case MG_FSSETXATTR:
	case MG_SETVERSION:
	case MG_FAT_SET_ATTRIBUTES:
		return 1;
	}
	if (group == MG_F2FS)
		return number != MG_F2FS_FEATURES && number != MG_F2FS_GET_PIN && number != MG_F2FS_GET_BLOCKS &&
		       number != MG_F2FS_GET_OPTION;
	if (group != MG_OF_FILES)
		return 0;
	switch (number) {
	case MG_GETFLAGS:
	case MG_EXT4_GETVERSION:
	case MG_EXT4_GETRSVSZ:
	case MG_FIEMAP:
	case MG_EXT4_PRECACHE:
	case MG_GET_ENCRYPTION_POLICY:
	case MG_GET_ENCRYPTION_POLICY_EX:
	case MG_GET_ENCRYPTION_KEY_STATUS:
	case MG_GET_ENCRYPTION_NONCE:
	case MG_EXT4_GETSTATE:
	case MG_EXT4_GET_CACHE:
	case MG_MEASURE_VERITY:
	case MG_READ_VERITY:
		return 0;
	}
	return 1;
}

/* Snapshots show what a folder holds under names that no rule knows, and keys are of a whole file system, whatever file of it a
 * descriptor is for.
 */
static __always_inline int mg_changes_file_system(__u32 group, __u32 number)
{
	switch (group) {
	case MG_OF_FILES:
		return number == MG_GET_ENCRYPTION_PWSALT ||
		       (number >= MG_ADD_ENCRYPTION_KEY && number <= MG_REMOVE_ENCRYPTION_KEY_ALL);
	case MG_BTRFS:
		/* Clones need a descriptor for writing; dedupe changes no content. The rest makes, removes and rearranges. */
		return number != MG_FICLONE && number != MG_FICLONERANGE && number != MG_FIDEDUPERANGE;
	case MG_BCACHEFS:
		return 1;
	}
	return (group << 8 | number) == MG_OCFS2_REFLINK;
}

/* Whom a socket's signals go to is checked by user alone, so nobody may be named; whom a call names lies in the program's memory.
 * A function of its own, for the room on the stack.
 */
static __noinline int mg_refuse_owner(const struct mg_session *session)
{
	mg_tell_own_call(session, MG_EPERM, MG_CALL_PROCESS);
	return -MG_EPERM;
}

MG_HOOK(file_ioctl)
{
	struct mg_session *session = mg_guarded();
	__u32 command, group, number;
	__u64 dentry;

	if (!session)
		return 0;
	command = mg_given(ctx, 1);
	if (command == MG_FIOSETOWN || command == MG_SIOCSPGRP)
		return mg_refuse_owner(session);
	if (command == MG_TIOCSTI || command == MG_TIOCLINUX)
		return -MG_EPERM;
	group = command >> 8 & 0xff;
	number = command & 0xff;
	if (mg_changes_file_system(group, number)) {
		dentry = mg_dentry_of_file(mg_given(ctx, 0));
		return mg_is_internal(dentry) ? 0 : mg_deny_file(session, dentry, 0, 0, MG_OP_IOCTL, MG_WRITE, MG_DETAIL_NONE, 0);
	}
	return mg_changes_file(group, number) ?
		       mg_ask(session, mg_dentry_of_file(mg_given(ctx, 0)), MG_WRITE, MG_OP_IOCTL, MG_DETAIL_NONE) : 0;
}

MG_HOOK(path_notify)
{
	struct mg_session *session = mg_guarded();

	return session ? mg_ask_by_path(session, mg_dentry_of_path(mg_given(ctx, 0)), MG_READ, MG_OP_WATCH) : 0;
}
