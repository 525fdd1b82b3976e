/* Takes a kernel file of the user's apart: hostile input, so in a process that
 * holds that file, an empty one for the result, and nothing else. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/msg.h"
#include "machine/image/image.h"
#include "roles/roles.h"
#include "super/proto.h"

int role_extract(const struct role *role)
{
	struct err e = { 0 };
	struct sandbox_layers layers;
	signal(SIGXFSZ, SIG_IGN); /* a full output is an error to report, not a death */
	if (sandbox_prepare(role->policy, &layers, &e) || sandbox_enter(role->policy, &layers, &e))
		role_fail(EPERM, e.text);
	role_log_to_supervisor();
	struct image_info info = { 0 };
	char text[400] = "";
	if (image_extract(EXTRACT_FD_IN, EXTRACT_FD_OUT, &info, text, sizeof text)) {
		/* EINVAL tells the supervisor that another place for the output would not help. */
		bool place = info.error == IMAGE_ERR_IO && info.sys_errno && info.sys_errno != EINVAL;
		role_fail(place ? info.sys_errno : info.error == IMAGE_ERR_MEMORY ? ENOMEM : EINVAL, text);
	}
	struct proto_extracted x = { .size = info.output_size };
	return msg_send(ROLE_FD_CONTROL, PROTO_EXTRACTED, &x, sizeof x, NULL, 0) ? 125 : 0;
}
