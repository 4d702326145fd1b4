"""What the shim and the gate say to one another: one packet each way over a unix socket, with two descriptors beside it.

    shim -> gate    {"version", "name", "argv"}                 and its standard input and output
    gate -> shim    {"go": {"program", "argv", "environment",   and what these are to be from now on
                            "cwd", "grants", "filter"}}
                    {"refused": [what, why, do, code]}

The shim then becomes the server, and with that its end of the line closes. The shim imports this, so it imports nothing.
"""

from __future__ import annotations

VERSION = 1
# Of one packet. Arguments and environment of a server are far smaller.
MOST_BYTES = 1 << 17
MOST_ARGUMENTS = 256
LONGEST_NAME = 128
# What the gate says to its session when it has heard the news.
HEARD = b"heard"
# And as its last word: all that it knows is on record, or counted as lost.
ALL = b"all"
# For the last of what it knows, while another holds the store; its session waits twice as long before it is killed.
PATIENCE_S = 5.0
# Where the agent's environment tells the shim to ask; nothing trusts it.
SOCKET_VARIABLE = "MCPGUARD_GATE"
# As for a program that may not be executed.
REFUSED = 126
