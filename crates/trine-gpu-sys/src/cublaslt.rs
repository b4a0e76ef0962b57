//! Matrix products: cuBLASLt, as `cublasLt.h` of CUDA 12.0 declares it.

use crate::driver::Stream;
use crate::error::{CallError, UNKNOWN, Version, text_at};
use crate::library::Library;
use std::ffi::{c_char, c_int, c_void};

/// NVIDIA's. The oldest is CUDA 11.7's.
pub static CUDA: Library<CublasLtSymbols> = Library {
    name: "cuBLASLt",
    files: &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"],
    companions: None,
    version_min: Version::new(11, 9),
    symbols: CublasLtSymbols::CUDA,
};

/// Versions before 11.9 are smaller numbers: 11605 is 11.6.5, 120803 is 12.8.3.
const NUMBER_MIN: u32 = 100_000;

handles! {
    /// The library's state for a device.
    Handle;
    /// What a product computes.
    Product;
    /// The shape and the type of a matrix.
    Layout;
    /// What a search for an algorithm may take.
    Preference;
}

/// How a product is computed; the library's own.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Algorithm {
    data: [u64; 8],
}

/// An algorithm that [`CublasLt::search`] has found.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Found {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The workspace that it needs.
    pub workspace_bytes: usize,
    /// 0 if it can be used.
    pub code: c_int,
    /// How well it fills the device: 1 is once.
    pub waves: f32,
    reserved: [c_int; 4],
}

/// Elements of matrices.
pub mod element {
    use std::ffi::c_int;

    /// `f32`.
    pub const F32: c_int = 0;
    /// `bf16`.
    pub const BF16: c_int = 14;
}

/// Sums are in f32.
pub const COMPUTE_F32: c_int = 68;
/// A matrix is taken transposed: the value of an attribute of a product.
pub const TRANSPOSED: c_int = 1;
/// The workspace that an algorithm may need ([`CublasLt::preference_set`]).
pub const PREFERENCE_WORKSPACE_BYTES_MAX: c_int = 1;

/// To how many bytes A, B, C and D are aligned ([`CublasLt::preference_set`], each 32 bits); 256 if nothing is said.
pub const PREFERENCE_ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];

/// Attributes of a product ([`CublasLt::product_set`]).
pub mod product_attribute {
    use std::ffi::c_int;

    /// Whether A is transposed.
    pub const TRANSPOSE_A: c_int = 3;
    /// Whether B is.
    pub const TRANSPOSE_B: c_int = 4;
    /// What is done with the result before it is written.
    pub const EPILOGUE: c_int = 7;
    /// Where the bias is, or its gradient goes.
    pub const BIAS: c_int = 8;
}

/// What is done with a result before it is written ([`product_attribute::EPILOGUE`]).
pub mod epilogue {
    use std::ffi::c_int;

    /// Nothing.
    pub const NONE: c_int = 1;
    /// A bias is added to each row.
    pub const BIAS: c_int = 4;
}

/// Attributes of a matrix ([`CublasLt::layout_set`]).
pub mod layout_attribute {
    use std::ffi::c_int;

    /// How many matrices there are, one behind the other.
    pub const BATCH_COUNT: c_int = 5;
    /// The elements from one to the next.
    pub const BATCH_STRIDE: c_int = 6;
}

table! {
    /// The functions of cuBLASLt.
    pub struct CublasLt named by CublasLtSymbols, as cudarc::cublaslt::sys;
    code {
        create = cublasLtCreate(handle: *mut Handle);
        destroy = cublasLtDestroy(handle: Handle);
        product_create = cublasLtMatmulDescCreate(
            product: *mut Product, compute: c_int, scale: c_int,
        );
        product_destroy = cublasLtMatmulDescDestroy(product: Product);
        product_set = cublasLtMatmulDescSetAttribute(
            product: Product, attribute: c_int, value: *const c_void, bytes: usize,
        );
        layout_create = cublasLtMatrixLayoutCreate(
            layout: *mut Layout, element: c_int, rows: u64, columns: u64, leading: i64,
        );
        layout_destroy = cublasLtMatrixLayoutDestroy(layout: Layout);
        layout_set = cublasLtMatrixLayoutSetAttribute(
            layout: Layout, attribute: c_int, value: *const c_void, bytes: usize,
        );
        preference_create = cublasLtMatmulPreferenceCreate(preference: *mut Preference);
        preference_destroy = cublasLtMatmulPreferenceDestroy(preference: Preference);
        preference_set = cublasLtMatmulPreferenceSetAttribute(
            preference: Preference, attribute: c_int, value: *const c_void, bytes: usize,
        );
        /// Algorithms for a product, the fastest first.
        search = cublasLtMatmulAlgoGetHeuristic(
            handle: Handle, product: Product, a: Layout, b: Layout, c: Layout, d: Layout,
            preference: Preference, count_max: c_int, found: *mut Found, count: *mut c_int,
        );
        /// D = alpha A B + beta C.
        multiply = cublasLtMatmul(
            handle: Handle, product: Product, alpha: *const c_void, a: *const c_void, a_layout:
            Layout, b: *const c_void, b_layout: Layout, beta: *const c_void, c: *const c_void,
            c_layout: Layout, d: *mut c_void, d_layout: Layout, algorithm: *const Algorithm,
            workspace: *mut c_void, workspace_bytes: usize, stream: Stream,
        );
    }
    value {
        library_version = cublasLtGetVersion() -> usize;
        code_name = cublasLtGetStatusName(code: c_int) -> *const c_char;
        code_text = cublasLtGetStatusString(code: c_int) -> *const c_char;
    }
}

impl CublasLt {
    fn read_version(&self) -> Result<Version, CallError> {
        // SAFETY: takes nothing.
        let number = u32::try_from(unsafe { self.library_version() }).unwrap_or(0);
        Ok(Version::from_number(number, if number < NUMBER_MIN { 10 } else { 100 }))
    }

    fn describe(&self, code: c_int) -> (String, String) {
        // SAFETY: both give a constant text that ends with a zero byte, or null.
        let (name, text) =
            unsafe { (text_at(self.code_name(code)), text_at(self.code_text(code))) };
        (name.unwrap_or_else(|| UNKNOWN.into()), text.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cudarc::cublaslt::sys;

    #[test]
    fn signatures_are_those_of_the_header() {
        let shapes = CublasLt::shapes();
        assert_eq!(shapes.len(), 16);
        for (symbol, ours, theirs) in shapes {
            assert_eq!(ours, theirs, "{symbol}");
        }
        assert_eq!(size_of::<Found>(), size_of::<sys::cublasLtMatmulHeuristicResult_t>());
        assert_eq!(size_of::<Algorithm>(), size_of::<sys::cublasLtMatmulAlgo_t>());
    }

    #[test]
    fn numbers_are_those_of_the_header() {
        use sys::cublasLtMatmulDescAttributes_t as Product;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        use sys::cublasLtMatrixLayoutAttribute_t as Layout;
        let alignments = [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES as c_int,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES as c_int,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES as c_int,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES as c_int,
        ];
        assert_eq!(PREFERENCE_ALIGNMENTS, alignments);
        let pairs = [
            (element::F32, sys::cudaDataType::CUDA_R_32F as c_int),
            (element::BF16, sys::cudaDataType::CUDA_R_16BF as c_int),
            (COMPUTE_F32, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F as c_int),
            (TRANSPOSED, cudarc::cublas::sys::cublasOperation_t::CUBLAS_OP_T as c_int),
            (
                PREFERENCE_WORKSPACE_BYTES_MAX,
                Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as c_int,
            ),
            (product_attribute::TRANSPOSE_A, Product::CUBLASLT_MATMUL_DESC_TRANSA as c_int),
            (product_attribute::TRANSPOSE_B, Product::CUBLASLT_MATMUL_DESC_TRANSB as c_int),
            (product_attribute::EPILOGUE, Product::CUBLASLT_MATMUL_DESC_EPILOGUE as c_int),
            (product_attribute::BIAS, Product::CUBLASLT_MATMUL_DESC_BIAS_POINTER as c_int),
            (epilogue::NONE, sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT as c_int),
            (epilogue::BIAS, sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as c_int),
            (layout_attribute::BATCH_COUNT, Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT as c_int),
            (
                layout_attribute::BATCH_STRIDE,
                Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET as c_int,
            ),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs);
        }
    }
}
