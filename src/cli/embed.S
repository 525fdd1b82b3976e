/* Files of the guest carried inside the binary. */
#include "embed_paths.h"
	.section .rodata
	.balign 16
	.global embed_agent, embed_agent_end, embed_busybox, embed_busybox_end
embed_agent:
	.incbin AGENT_FILE
embed_agent_end:
	.balign 16
embed_busybox:
	.incbin BUSYBOX_FILE
embed_busybox_end:
	.section .note.GNU-stack, "", @progbits
