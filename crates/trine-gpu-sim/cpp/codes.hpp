// Codes of the driver (`cuda.h`, CUresult) that the simulator returns.
#pragma once

namespace sim {

enum Code {
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    DEVICE_UNAVAILABLE = 46,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_TIMEOUT = 702,
    PEER_ACCESS_ALREADY_ENABLED = 704,
    PEER_ACCESS_UNSUPPORTED = 217,
    LAUNCH_FAILED = 719,
};

// `CUDA_ERROR_INVALID_VALUE`; null if the code is none of these.
const char* code_name(int code);
const char* code_text(int code);

} // namespace sim
