/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * probe_cost: a pair of probes that do nothing, the least that probing a call can cost.
 */
int on_empty_entry(void *ctx)
{
	return 0;
}

int on_empty_return(void *ctx)
{
	return 0;
}
