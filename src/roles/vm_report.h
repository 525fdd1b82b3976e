/* The report of a VM's death: registers, where it was, what it ran last. */
#ifndef ROLES_VM_REPORT_H
#define ROLES_VM_REPORT_H

#include "core/report.h"
#include "machine/machine.h"

/* Writes everything known about the machine's vCPUs and devices into r.  From
 * a vCPU's own thread or after machine_run(): nothing may run meanwhile that
 * matters, what is torn is only text. */
void vm_report_machine(struct report *r, struct machine *m, const struct hv_ops *hv);

#endif
