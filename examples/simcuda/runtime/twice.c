/* SPDX-License-Identifier: Apache-2.0
 *
 * twice.c - the runtime functions that know a default stream, in both their forms.
 */
#include <stdlib.h>

#include "runtime.h"

#define DS(name) name
#define SZ(name) name
#define DRIVER_DS(name) driver.name
#define DRIVER_SZ(name) driver.name
#include "copies.inc.h"
#include "streams.inc.h"
#undef DS
#undef SZ
#undef DRIVER_DS
#undef DRIVER_SZ

#define DS(name) name##_ptds
#define SZ(name) name##_ptsz
#define DRIVER_DS(name) driver.name##_ptds
#define DRIVER_SZ(name) driver.name##_ptsz
#include "copies.inc.h"
#include "streams.inc.h"
