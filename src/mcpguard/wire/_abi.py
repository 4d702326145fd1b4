"""Layout of the BPF records, keys and values. Written by tools/gen_abi.py from bpf/include/mg_abi.h; do not edit.

For each struct: the names of its fields, and its struct.Struct with nested structs and byte arrays as bytes.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

ABI_VERSION: Final = 17

MG_COMM_BYTES: Final = 16
MG_PATH_BYTES: Final = 4096
MG_ARGV_BYTES: Final = 2048
MG_PORT_RULES_LIMIT: Final = 32
MG_SUN_BYTES: Final = 108
MG_UNIX_RULES_LIMIT: Final = 64
MG_SESSIONS_LIMIT: Final = 256
MG_LEAVES_LIMIT: Final = 1024
MG_PLACES: Final = 4096
MG_SPOKEN_PLACES: Final = 1024
MG_POLICIES_LIMIT: Final = 1024
MG_FACTORS_LIMIT: Final = 8
MG_PAGE_LINES: Final = 8192
MG_PAGES_LIMIT: Final = 64
MG_NAMES_LIMIT: Final = 4
MG_FLOWS_LIMIT: Final = 8192
MG_LEARNED_LIMIT: Final = 8
MG_HOST_BYTES: Final = 256
MG_BRANCH_BYTES: Final = 32
MG_PIECE_BYTES: Final = 8192

MG_RECORD_FORK: Final = 1
MG_RECORD_EXEC: Final = 2
MG_RECORD_EXIT: Final = 3
MG_RECORD_OPEN: Final = 4
MG_RECORD_PATH_CALL: Final = 5
MG_RECORD_CALL: Final = 6
MG_RECORD_NET: Final = 7
MG_RECORD_UNIX: Final = 8
MG_RECORD_FILE: Final = 9
MG_RECORD_MESSAGE: Final = 10
MG_RECORD_HOST: Final = 11

MG_ALLOW: Final = 1
MG_DENY: Final = 2
MG_AUDIT: Final = 3

MG_READ: Final = 1
MG_WRITE: Final = 2
MG_EXECUTE: Final = 4

MG_REGULAR: Final = 1
MG_DIRECTORY: Final = 2
MG_DEVICE: Final = 3
MG_MEMFD: Final = 4
MG_OTHER: Final = 5

MG_TCP: Final = 1
MG_UDP: Final = 2
MG_NAMED: Final = 4

MG_NET_CONNECT: Final = 1
MG_NET_SENDMSG: Final = 2
MG_NET_BIND: Final = 3
MG_NET_SOCKET: Final = 4
MG_NET_PACKET: Final = 5
MG_NET_ACCEPT: Final = 6

MG_DETAIL_NONE: Final = 0
MG_DETAIL_NARROWED: Final = 1
MG_DETAIL_OWN: Final = 2
MG_DETAIL_NOT_PLAIN: Final = 3
MG_DETAIL_BELOW: Final = 4
MG_DETAIL_WIDENS: Final = 5
MG_DETAIL_UNKNOWN: Final = 6
MG_DETAIL_DETACHED: Final = 7
MG_DETAIL_DEEP: Final = 8
MG_DETAIL_UNSTABLE: Final = 9
MG_DETAIL_NO_POLICY: Final = 10
MG_DETAIL_MEMORY: Final = 11
MG_DETAIL_RECEIVED: Final = 12
MG_DETAIL_MAPPED: Final = 13
MG_DETAIL_NAMES: Final = 14
MG_DETAIL_OUTSIDER: Final = 15
MG_DETAIL_EXPIRED: Final = 16
MG_DETAIL_RESOLVER: Final = 17
MG_DETAIL_HOST: Final = 18
MG_DETAIL_NO_HOST: Final = 19
MG_DETAIL_UNCLEAR: Final = 20

MG_PIPE: Final = 1
MG_UNIX_STREAM: Final = 2
MG_LOOPBACK: Final = 3

MG_UNIX_EXACT: Final = 0
MG_UNIX_SUBTREE: Final = 1
MG_UNIX_BEGINNING: Final = 2

MG_OP_OPEN: Final = 1
MG_OP_CREATE: Final = 2
MG_OP_EXEC: Final = 3
MG_OP_TRUNCATE: Final = 4
MG_OP_UNLINK: Final = 5
MG_OP_RMDIR: Final = 6
MG_OP_MKDIR: Final = 7
MG_OP_MKNOD: Final = 8
MG_OP_SYMLINK: Final = 9
MG_OP_LINK: Final = 10
MG_OP_RENAME: Final = 11
MG_OP_EXCHANGE: Final = 12
MG_OP_CHMOD: Final = 13
MG_OP_CHOWN: Final = 14
MG_OP_XATTR: Final = 15
MG_OP_UTIMES: Final = 16
MG_OP_STAT: Final = 17
MG_OP_READLINK: Final = 18
MG_OP_CHDIR: Final = 19
MG_OP_MAP: Final = 20
MG_OP_RECEIVE: Final = 21
MG_OP_WATCH: Final = 22
MG_OP_IOCTL: Final = 23
MG_OP_CONNECT: Final = 24
MG_OP_SEND: Final = 25

MG_CALL_SOCKET: Final = 1
MG_CALL_PTRACE: Final = 2
MG_CALL_SIGNAL: Final = 3
MG_CALL_PROCESS_MEMORY: Final = 4
MG_CALL_PIDFD_GETFD: Final = 5
MG_CALL_BPF: Final = 6
MG_CALL_PERF: Final = 7
MG_CALL_UNSHARE: Final = 8
MG_CALL_CLONE: Final = 9
MG_CALL_SETNS: Final = 10
MG_CALL_MOUNT: Final = 11
MG_CALL_KEYCTL: Final = 12
MG_CALL_MODULE: Final = 13
MG_CALL_IO_URING: Final = 14
MG_CALL_IOCTL: Final = 15
MG_CALL_CHROOT: Final = 16
MG_CALL_HANDLE: Final = 17
MG_CALL_IDENTITY: Final = 18
MG_CALL_PROCESS: Final = 19
MG_CALL_HOST: Final = 20

MG_SESSION_LIVE: Final = 1
MG_SESSION_AUDIT: Final = 2
MG_SESSION_RELATIVE: Final = 4
MG_SESSION_FILES: Final = 8
MG_SESSION_NAMESPACES: Final = 16
MG_SESSION_MEMORY_PROGRAMS: Final = 32
MG_SESSION_IO_URING: Final = 64
MG_SESSION_PEERS: Final = 256
MG_SESSION_ENDED: Final = 128

MG_KINDRED_TMPFS: Final = 1
MG_KINDRED_PROC: Final = 2
MG_KINDRED_DEVPTS: Final = 3

MG_GOES_ON: Final = 0
MG_ENDED: Final = 1
MG_HELD: Final = 2
MG_HEARD: Final = 3
MG_HELD_UNSEEN: Final = 4

MG_NOT_GATED: Final = 0
MG_GATED: Final = 1
MG_GATED_FOR_ALL: Final = 2

MG_HOST_NONE: Final = 0
MG_HOST_NAMED: Final = 1

# when_ns kind lost_before pid tid ppid said comm
MG_HEAD: Final = struct.Struct("=QIIIIII16s")

# head child reserved
MG_FORK: Final = struct.Struct("=48sII")

# head code reserved
MG_EXIT: Final = struct.Struct("=48sII")

# head exe_length argv_length argv_cut exe_cut
MG_EXEC: Final = struct.Struct("=48sIIII")

# head series count fd reserved path_length access file_kind created cut
MG_OPEN: Final = struct.Struct("=48sQQIIIBBBB")

# head series count result base_length path_length base2_length path2_length op access follow paths cut stands
# cwd_length reserved
MG_PATH_CALL: Final = struct.Struct("=48sQQIHHHHBBBBBBH4s")

# head series count rule device device2 name_length name2_length op access verdict detail cut second reserved
MG_FILE: Final = struct.Struct("=48sQQIIIHHBBBBBB10s")

# head series count argument argument2 number result op reserved
MG_CALL: Final = struct.Struct("=48sQQQQIIII")

# head series count address rule port protocol op verdict detail reserved
MG_NET: Final = struct.Struct("=48sQQ16sIHHBBB5s")

# head series count rule op verdict detail path_length path reserved
MG_UNIX: Final = struct.Struct("=48sQQIBBBB108sI")

# address pid rule port verdict detail length reserved name
MG_HOST_TARGET: Final = struct.Struct("=16sIIHBBB3s256s")

# head series count target
MG_HOST: Final = struct.Struct("=48sQQ288s")

# abi_version reserved
MG_CONFIG: Final = struct.Struct("=II")

# slot flags files sockets resolver kept
MG_SESSION: Final = struct.Struct("=IIIIII")

# session id
MG_LEAF: Final = struct.Struct("=24sQ")

# words
MG_LINE: Final = struct.Struct("=16s")

# lines
MG_PAGE: Final = struct.Struct("=131072s")

# guard_masks factors protect_from rules guards telling
MG_POLICY: Final = struct.Struct("=24sIIII32s")

# at ranks pinned matched excepted
MG_STATE: Final = struct.Struct("=32s12sIQQ")

# state node names
MG_PLACE: Final = struct.Struct("=64sII")

# policy device name reserved
MG_ROOT_KEY: Final = struct.Struct("=IIII")

# policy device node left name bytes
MG_BRANCH_KEY: Final = struct.Struct("=IIIHH32s")

# head offset own far input device input_device length lost port far_port channel ends_line output fate
MG_MESSAGE: Final = struct.Struct("=48sQQQQIIIIHHBBBB")

# series denials_lost denials_pending activity_lost activity_pending scratch_busy messages_lost
# messages_pending said first gated agent
MG_COUNTERS: Final = struct.Struct("=QQQQQQQQQQQQ")

# total reported series said
MG_SUM: Final = struct.Struct("=QQQQ")

# bits address
MG_PREFIX: Final = struct.Struct("=I16s")

# rule low high protocols verdict reserved
MG_PORT_RULE: Final = struct.Struct("=IHHBB2s")

# count rules
MG_PORT_RULES: Final = struct.Struct("=I384s")

# bits bytes
MG_HOST_KEY: Final = struct.Struct("=I256s")

# expires_ns rule low high protocols reserved
MG_LEARNED_RULE: Final = struct.Struct("=QIHHB7s")

# count reserved rules
MG_LEARNED: Final = struct.Struct("=II192s")

# address port protocol
MG_QUESTION_KEY: Final = struct.Struct("=16sHH")

# pid tid ppid kept comm server
MG_QUESTION: Final = struct.Struct("=IIII16s16s")

# address port protocol op reserved
MG_FLOW_KEY: Final = struct.Struct("=16sHHB3s")

# sent received
MG_FLOW: Final = struct.Struct("=QQ")

# bytes length type
MG_NAME: Final = struct.Struct("=112sII")

# rule verdict match length reserved pattern
MG_UNIX_RULE: Final = struct.Struct("=IBBBB108s")

# count rules
MG_UNIX_RULES: Final = struct.Struct("=I7424s")
