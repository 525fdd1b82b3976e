/* Parts of the guest agent. */
#ifndef GUEST_AGENT_H
#define GUEST_AGENT_H

#include "core/base.h"

/* Serves the protocol of core/agent_proto.h on fd until the command has ended and everything is written.
 * run: payload of RUN when it came with the initramfs, else NULL.  Returns NULL, or what went wrong with the link. */
const char *agent_serve(int fd, const void *run, u32 run_len);

/* Runs a shell on the console until it ends (umbra run --console). */
void agent_console_shell(void);

#endif
