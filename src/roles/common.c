/* What every role does towards its supervisor. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"
#include "roles/roles.h"
#include "super/proto.h"
#include "super/super.h"

_Noreturn void role_fail(int errnum, const char *text)
{
	struct proto_failed f = { .errnum = errnum < 0 ? -errnum : errnum };
	snprintf(f.text, sizeof f.text, "%s", text);
	(void)msg_send(ROLE_FD_CONTROL, PROTO_FAILED, &f, sizeof f, NULL, 0); /* nobody there: nobody to tell */
	_exit(SUPER_STATUS_FAILED);
}

static void role_log_sink(void *arg, enum log_level level, const char *line)
{
	struct proto_log l = { .level = (u32)level };
	snprintf(l.text, sizeof l.text, "%s", line);
	(void)msg_send(ROLE_FD_CONTROL, PROTO_LOG, &l, sizeof l, NULL, 0); /* a full socket loses lines, not time */
}

void role_log_to_supervisor(void) { log_set_sink(role_log_sink, NULL); }
