//! Matrix products.

use crate::check::{Mat, MatSplit, dims, with_num};
use crate::isa::vectorised;
use crate::num::{Num, Real};
use crate::{CpuOps, KernelError, MatMut, MatRef, Product};
use trine_buffer::Element;

type Done = Result<(), KernelError>;

/// Checks the three shapes against each other; gives (m, n, k).
fn shape(
    product: Product,
    a: (usize, usize),
    b: (usize, usize),
    c: (usize, usize),
) -> Result<(usize, usize, usize), KernelError> {
    let (m, k) = match product {
        Product::Nt | Product::Nn => a,
        Product::Tn => (a.1, a.0),
    };
    let (n, k_b) = match product {
        Product::Nt => b,
        Product::Nn | Product::Tn => (b.1, b.0),
    };
    dims("matmul", k == k_b && c == (m, n), || {
        format!(
            "{product:?} of a [{}, {}] and b [{}, {}] does not give c [{}, {}]",
            a.0, a.1, b.0, b.1, c.0, c.1
        )
    })?;
    Ok((m, n, k))
}

vectorised! {
    fn fma_row<T: Num>(acc: &mut [T::Acc], a: T, b: &[T]) {
        for (acc, b) in acc.iter_mut().zip(b) {
            *acc = a.widen().fma(b.widen(), *acc);
        }
    }
}

pub(crate) fn matmul(
    cpu: &CpuOps,
    product: Product,
    accumulate: bool,
    a: MatRef<'_>,
    b: MatRef<'_>,
    c: MatMut<'_>,
) -> Done {
    const OP: &str = "matmul";
    fn run<T: Num, C: Num<Acc = T::Acc>>(
        cpu: &CpuOps,
        product: Product,
        accumulate: bool,
        a: MatRef<'_>,
        b: MatRef<'_>,
        c: MatMut<'_>,
    ) -> Done {
        let (a, b) = (Mat::<T>::new(OP, "a", a)?, Mat::<T>::new(OP, "b", b)?);
        let c = MatSplit::<C>::new(OP, "c", c)?;
        let (m, n, k) = shape(product, a.shape(), b.shape(), c.shape())?;
        cpu.parallel(m, n * k, |rows| {
            let mut acc = vec![T::Acc::ZERO; n];
            let mut b_row = vec![T::narrow(T::Acc::ZERO); n];
            for i in rows {
                // SAFETY: each row is written by one thread.
                let c = unsafe { c.part(i, 0..n) };
                for (acc, c) in acc.iter_mut().zip(&*c) {
                    *acc = if accumulate { c.widen() } else { T::Acc::ZERO };
                }
                for p in 0..k {
                    let a = match product {
                        Product::Nt | Product::Nn => a.row(i)[p],
                        Product::Tn => a.row(p)[i],
                    };
                    match product {
                        Product::Nt => {
                            for (j, b_j) in b_row.iter_mut().enumerate() {
                                *b_j = b.row(j)[p];
                            }
                            fma_row(cpu.isa, &mut acc, a, &b_row);
                        }
                        Product::Nn | Product::Tn => fma_row(cpu.isa, &mut acc, a, b.row(p)),
                    }
                }
                for (c, acc) in c.iter_mut().zip(&acc) {
                    *c = C::narrow(*acc);
                }
            }
        });
        Ok(())
    }
    let c_dtype = c.data.dtype();
    with_num!(OP, "a", a.data.dtype(), T => {
        if c_dtype == T::DTYPE {
            run::<T, T>(cpu, product, accumulate, a, b, c)
        } else {
            run::<T, <T as Num>::Acc>(cpu, product, accumulate, a, b, c)
        }
    })
}
