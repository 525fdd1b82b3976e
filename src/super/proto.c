#include "super/proto.h"

#include <termios.h>

#define PROTO_EMPTY(t) { .type = t, .name = #t }
#define PROTO_STRUCT(t, s) { .type = t, .name = #t, .min_len = sizeof(s), .max_len = sizeof(s) }

const struct msg_spec proto_from_vm[] = {
	PROTO_EMPTY(PROTO_VM_READY),
	PROTO_STRUCT(PROTO_VM_STATS, struct proto_stats),
	PROTO_STRUCT(PROTO_VM_ENDED, struct proto_vm_ended),
	PROTO_STRUCT(PROTO_LOG, struct proto_log),
	PROTO_STRUCT(PROTO_FAILED, struct proto_failed),
};
const unsigned proto_from_vm_n = ARRAY_SIZE(proto_from_vm);

const struct msg_spec proto_from_session[] = {
	PROTO_EMPTY(PROTO_SESSION_STARTED),
	PROTO_STRUCT(PROTO_SESSION_EXITED, struct proto_exited),
	{ .type = PROTO_SESSION_TAIL, .name = "PROTO_SESSION_TAIL", .max_len = PROTO_TAIL_MAX },
	PROTO_STRUCT(PROTO_SESSION_FAILED, struct proto_text),
	PROTO_STRUCT(PROTO_LOG, struct proto_log),
	PROTO_STRUCT(PROTO_FAILED, struct proto_failed),
};
const unsigned proto_from_session_n = ARRAY_SIZE(proto_from_session);

const struct msg_spec proto_from_extract[] = {
	PROTO_STRUCT(PROTO_EXTRACTED, struct proto_extracted),
	PROTO_STRUCT(PROTO_LOG, struct proto_log),
	PROTO_STRUCT(PROTO_FAILED, struct proto_failed),
};
const unsigned proto_from_extract_n = ARRAY_SIZE(proto_from_extract);

const struct msg_spec proto_to_vm[] = {
	PROTO_STRUCT(PROTO_VM_CONFIG, struct proto_vm_config),
	PROTO_EMPTY(PROTO_VM_STOP),
};
const unsigned proto_to_vm_n = ARRAY_SIZE(proto_to_vm);

const struct msg_spec proto_to_session[] = {
	PROTO_STRUCT(PROTO_SESSION_SIGNAL, struct proto_signal),
	PROTO_STRUCT(PROTO_SESSION_WINSIZE, struct proto_winsize),
	PROTO_EMPTY(PROTO_SESSION_STOP),
};
const unsigned proto_to_session_n = ARRAY_SIZE(proto_to_session);

const struct msg_spec proto_to_ttyguard[] = {
	PROTO_STRUCT(PROTO_TTY_SAVED, struct termios),
	PROTO_EMPTY(PROTO_TTY_DONE),
};
const unsigned proto_to_ttyguard_n = ARRAY_SIZE(proto_to_ttyguard);

_Static_assert(sizeof(struct proto_vm_config) <= MSG_MAX_BODY, "fits one message");
_Static_assert(sizeof(struct proto_stats) <= MSG_MAX_BODY, "fits one message");
