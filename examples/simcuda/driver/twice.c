/* SPDX-License-Identifier: Apache-2.0
 *
 * twice.c - the driver functions that know a default stream, in both their forms.
 */
#include "driver.h"

#define PER_THREAD 0
#define DS(name) name
#define SZ(name) name
#include "copies.inc.h"
#include "memsets.inc.h"
#include "streams.inc.h"
#undef PER_THREAD
#undef DS
#undef SZ

#define PER_THREAD 1
#define DS(name) name##_ptds
#define SZ(name) name##_ptsz
#include "copies.inc.h"
#include "memsets.inc.h"
#include "streams.inc.h"
