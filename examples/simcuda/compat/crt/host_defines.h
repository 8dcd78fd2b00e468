/* SPDX-License-Identifier: Apache-2.0
 *
 * crt/host_defines.h - what cuda_runtime_api.h wants of the compiler's header, for gcc.
 *
 * The wheel with the runtime's headers leaves this one to the compiler's wheel. Only
 * host code is built here, so that the marks of device code mean nothing.
 */
#ifndef SIMCUDA_COMPAT_HOST_DEFINES_H
#define SIMCUDA_COMPAT_HOST_DEFINES_H

#define CUDARTAPI
#define CUDART_CB
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __host__
#define __device__
#define __global__
#define __shared__
#define __constant__
#define __managed__

#endif
