// Answers as libcuda, libcublasLt, libnccl and libnvrtc in one: two GPUs, versions, and nothing that computes.
//
// Macros change an answer: -DDRIVER=11080 a version, -DINIT=803 a code, -DCAPABILITY=7 that of the first GPU, -DcuMemAllocAsync=gone takes a symbol away.
#include <dlfcn.h>
#include <string.h>

#ifndef DRIVER
#define DRIVER 12040
#endif
#ifndef CAPABILITY
#define CAPABILITY 9
#endif
#ifndef INIT
#define INIT 0
#endif
#ifndef LT
#define LT 120803
#endif
#ifndef NCCL
#define NCCL 21903
#endif
#ifndef NCCL_CODE
#define NCCL_CODE 0
#endif
#ifndef BUILTINS
#define BUILTINS "libnvrtc-builtins.so.12.0"
#endif

#define DONE(name) int name() { return 0; }

extern "C" {

int cuInit(unsigned) { return INIT; }
int cuDriverGetVersion(int *version) { *version = DRIVER; return 0; }
int cuGetErrorName(int code, const char **name) {
    *name = code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : nullptr;
    return 0;
}
int cuGetErrorString(int code, const char **text) {
    *text = code == 803 ? "system has unsupported display driver / cuda driver combination" : nullptr;
    return 0;
}
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = 10 + index; return 0; }
int cuDeviceGetName(char *name, int len, int device) {
    strncpy(name, device == 10 ? "Stub 80" : "Stub 24", len);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (device == 10 ? 80ull : 24ull) << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? (device == 10 ? CAPABILITY : 8) : attribute == 76 ? (device == 10 ? 0 : 6) : -1;
    return 0;
}
DONE(cuDeviceGetPCIBusId) DONE(cuDeviceCanAccessPeer) DONE(cuDevicePrimaryCtxRetain)
DONE(cuDevicePrimaryCtxRelease_v2) DONE(cuCtxSetCurrent) DONE(cuCtxEnablePeerAccess)
DONE(cuCtxGetStreamPriorityRange) DONE(cuStreamCreateWithPriority) DONE(cuStreamDestroy_v2)
DONE(cuStreamSynchronize) DONE(cuStreamQuery) DONE(cuStreamWaitEvent) DONE(cuEventCreate) DONE(cuEventDestroy_v2)
DONE(cuEventRecord) DONE(cuEventQuery) DONE(cuEventSynchronize) DONE(cuEventElapsedTime) DONE(cuMemGetInfo_v2)
DONE(cuMemAllocAsync) DONE(cuMemFreeAsync) DONE(cuMemsetD8Async) DONE(cuMemcpyHtoDAsync_v2)
DONE(cuMemcpyDtoHAsync_v2) DONE(cuMemcpyDtoDAsync_v2) DONE(cuMemcpyPeerAsync) DONE(cuMemHostAlloc)
DONE(cuMemFreeHost) DONE(cuDeviceGetDefaultMemPool) DONE(cuMemPoolSetAttribute) DONE(cuModuleLoadDataEx)
DONE(cuModuleUnload) DONE(cuModuleGetFunction) DONE(cuFuncGetAttribute) DONE(cuFuncSetAttribute) DONE(cuLaunchKernel)

size_t cublasLtGetVersion() { return LT; }
const char *cublasLtGetStatusName(int code) { return code == 1 ? "CUBLAS_STATUS_NOT_INITIALIZED" : nullptr; }
const char *cublasLtGetStatusString(int) { return "the stub computes nothing"; }
int cublasLtCreate(void **) { return 1; }
DONE(cublasLtDestroy) DONE(cublasLtMatmulDescCreate) DONE(cublasLtMatmulDescDestroy)
DONE(cublasLtMatmulDescSetAttribute) DONE(cublasLtMatrixLayoutCreate) DONE(cublasLtMatrixLayoutDestroy)
DONE(cublasLtMatrixLayoutSetAttribute) DONE(cublasLtMatmulPreferenceCreate) DONE(cublasLtMatmulPreferenceDestroy)
DONE(cublasLtMatmulPreferenceSetAttribute) DONE(cublasLtMatmulAlgoGetHeuristic) DONE(cublasLtMatmul)

int ncclGetVersion(int *version) { *version = NCCL; return NCCL_CODE; }
const char *ncclGetErrorString(int) { return "unhandled system error"; }
const char *ncclGetLastError(void *) { return "none"; }
DONE(ncclGetUniqueId) DONE(ncclCommInitRankConfig) DONE(ncclCommSplit) DONE(ncclCommFinalize) DONE(ncclCommDestroy)
DONE(ncclCommAbort) DONE(ncclCommGetAsyncError) DONE(ncclGroupStart) DONE(ncclGroupEnd) DONE(ncclAllReduce)
DONE(ncclReduce) DONE(ncclBroadcast) DONE(ncclAllGather) DONE(ncclReduceScatter) DONE(ncclSend) DONE(ncclRecv)

int nvrtcVersion(int *major, int *minor) { *major = 12; *minor = 0; return 0; }
const char *nvrtcGetErrorString(int code) {
    return code == 7 ? "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE" : "NVRTC_ERROR unknown";
}
// As the real one does, it looks for another library by its name alone.
int nvrtcCompileProgram(void *, int, const char *const *) { return dlopen(BUILTINS, RTLD_NOW) ? 0 : 7; }
DONE(nvrtcCreateProgram) DONE(nvrtcDestroyProgram) DONE(nvrtcGetProgramLogSize) DONE(nvrtcGetProgramLog)
DONE(nvrtcGetPTXSize) DONE(nvrtcGetPTX) DONE(nvrtcGetCUBINSize) DONE(nvrtcGetCUBIN)
}
