"""The numbers and structures of the NBD protocol.

Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.  Everything is big-endian.

    server: "NBDMAGIC" "IHAVEOPT" handshake flags (16)         client: client flags (32)
    client: "IHAVEOPT" option (32) size (32) data               server: REPLY_MAGIC option type size data
    client: REQUEST_MAGIC flags type cookie offset size [data]  server: a simple reply, or structured ones
"""

from __future__ import annotations

import struct

INIT_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
STRUCTURED_MAGIC = 0x668E33EF

GREETING = struct.Struct(">8s8sH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">8sII")
OPTION_REPLY = struct.Struct(">QIII")
EXPORT_NAME_REPLY = struct.Struct(">QH")  # size, transmission flags, then 124 zeros
REQUEST = struct.Struct(">IHHQQI")
SIMPLE = struct.Struct(">IIQ")  # magic, error, cookie
STRUCTURED = struct.Struct(">IHHQI")  # magic, flags, type, cookie, size of what follows
OFFSET_DATA = struct.Struct(">IHHQIQ")  # a structured reply's head, and the offset of its data
EXTENT = struct.Struct(">II")  # bytes, state

# Handshake and client flags
FIXED_NEWSTYLE, NO_ZEROES = 1, 2

# Options
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST = 1, 2, 3
OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY = 6, 7, 8
OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT = 9, 10

# Replies to options
REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
REP_ERR_UNSUP, REP_ERR_INVALID = (1 << 31) + 1, (1 << 31) + 3
REP_ERR_UNKNOWN, REP_ERR_TOO_BIG = (1 << 31) + 6, (1 << 31) + 9
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

# Transmission flags
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN = 1 << 5, 1 << 6, 1 << 7, 1 << 8

# Requests, and their flags
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM = 0, 1, 2, 3, 4
CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = 6, 7
FLAG_FUA, FLAG_NO_HOLE, FLAG_DF, FLAG_REQ_ONE = 1, 2, 4, 8

# Structured replies
REPLY_DONE = 1
REPLY_NONE, REPLY_OFFSET_DATA, REPLY_BLOCK_STATUS = 0, 1, 5
REPLY_ERROR = (1 << 15) + 1

STATE_HOLE, STATE_ZERO = 1, 2
BASE_ALLOCATION = b"base:allocation"

MAX_NAME = 4096  # bytes; "Values", on strings
MAX_REQUEST = 32 << 20  # bytes of data in one request; what clients may rely on without asking
PREFERRED_BLOCK = 4096
