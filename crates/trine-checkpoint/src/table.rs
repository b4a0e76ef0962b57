//! The tensors of a model as they lie in a file, and where in them each rank's part belongs.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::ops::Range;
use trine_spec::{LocalParam, ModelParts, ParamSpec, PieceParts};

/// One tensor of a file. Rows are output features: they are stored first, or last if `transposed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) rows: usize,
    /// Input features; `None` for a vector.
    columns: Option<usize>,
    transposed: bool,
    /// Elements of the tensors before it.
    pub(crate) start: usize,
}

/// The part of a tensor that one rank holds, padding left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) tensor: usize,
    /// In ascending order, none of them empty.
    runs: Vec<Range<usize>>,
    columns: Range<usize>,
}

/// A parameter's place in a tensor: rows `first..first + rows`, or so many in equal runs that begin `stride` rows
/// apart.
#[derive(Debug, Clone, Copy)]
struct Home {
    tensor: usize,
    first: usize,
    rows: usize,
    run: usize,
    stride: usize,
}

impl Home {
    /// Where rows `rows` of the parameter are in the tensor.
    fn runs(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let Self { first, run, stride, .. } = *self;
        let mut runs = Vec::new();
        let mut row = rows.start;
        while row < rows.end {
            let (number, within) = (row / run, row % run);
            let len = (run - within).min(rows.end - row);
            let start = first + number * stride + within;
            runs.push(start..start + len);
            row += len;
        }
        runs
    }
}

/// All tensors of a model in the order in which a file holds them: that of the forward pass.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) tensors: Vec<Tensor>,
    homes: HashMap<String, Home>,
}

/// What a file holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) tensors: usize,
    pub(crate) elements: usize,
}

impl Table {
    pub(crate) fn new(model: &ModelParts) -> Self {
        Self::within(&model.pieces, Room { tensors: usize::MAX, elements: usize::MAX })
    }

    /// The table of a model that somebody else has described. It ends with the first tensor that
    /// goes beyond what the file holds, whatever the model claims to have: such a table cannot be
    /// located in the file.
    pub(crate) fn within<T: Borrow<PieceParts>>(
        pieces: impl IntoIterator<Item = T>,
        room: Room,
    ) -> Self {
        let mut table = Self { tensors: Vec::new(), homes: HashMap::new() };
        let mut start: usize = 0;
        for piece in pieces {
            // Padding depends on the layout, the rows that are real do not.
            let PieceParts { params, outside, .. } = piece.borrow();
            for described in outside {
                let parts: Vec<&ParamSpec> = described
                    .parts
                    .iter()
                    .map(|part| params.iter().find(|spec| spec.name == *part))
                    .map(|spec| spec.expect("invariant: tensors of a file name parameters"))
                    .collect();
                let rows: usize = parts.iter().map(|part| part.valid_rows).sum();
                let mut first = 0;
                for part in &parts {
                    // Whole parts one after another, or a piece of each and then the next of each.
                    let run = part.valid_rows / described.pieces;
                    let stride = rows / described.pieces;
                    let tensor = table.tensors.len();
                    let home = Home { tensor, first, rows: part.valid_rows, run, stride };
                    table.homes.insert(part.name.clone(), home);
                    first += run;
                }
                let columns = parts[0].shape.get(1).copied();
                let tensor = Tensor {
                    name: described.name.clone(),
                    rows,
                    columns,
                    transposed: described.transposed,
                    start,
                };
                let end = tensor.checked_len().and_then(|len| start.checked_add(len));
                table.tensors.push(tensor);
                match end.filter(|end| *end <= room.elements) {
                    Some(end) if table.tensors.len() <= room.tensors => start = end,
                    Some(_) | None => return table,
                }
            }
        }
        table
    }

    /// Elements of all tensors.
    pub(crate) fn len(&self) -> usize {
        self.tensors.last().map_or(0, |last| last.start + last.len())
    }

    /// Where the elements of `param` belong (for a tied copy: where those of the original do), or
    /// what is wrong with it.
    pub(crate) fn region(&self, param: &LocalParam) -> Result<Region, String> {
        let spec = &param.spec;
        let name = spec.tied_to.as_ref().unwrap_or(&spec.name);
        let home = self.homes.get(name).ok_or_else(|| format!("the model has no \"{name}\""))?;
        let width = self.tensors[home.tensor].columns.unwrap_or(1);
        let held = (spec.valid_rows, spec.shape.get(1).copied().unwrap_or(1));
        if held != (home.rows, width) {
            let wanted = (home.rows, width);
            return Err(format!("\"{name}\" is {held:?} and the model's is {wanted:?}"));
        }
        let rows = &param.ranges[0];
        let (start, end) = (rows.start.min(home.rows), rows.end.min(home.rows));
        let columns = param.ranges.get(1).cloned().unwrap_or(0..1);
        Ok(Region { tensor: home.tensor, runs: home.runs(start..end), columns })
    }
}

impl Region {
    /// Elements.
    pub(crate) fn len(&self) -> usize {
        self.runs.iter().map(Range::len).sum::<usize>() * self.columns.len()
    }
}

impl Tensor {
    /// The shape as it is stored.
    pub(crate) fn shape(&self) -> Vec<usize> {
        match (self.columns, self.transposed) {
            (None, _) => vec![self.rows],
            (Some(columns), false) => vec![self.rows, columns],
            (Some(columns), true) => vec![columns, self.rows],
        }
    }

    /// Elements.
    pub(crate) fn len(&self) -> usize {
        self.rows * self.columns.unwrap_or(1)
    }

    /// Elements, if there is a number for so many.
    fn checked_len(&self) -> Option<usize> {
        self.rows.checked_mul(self.columns.unwrap_or(1))
    }

    /// Copies one rank's part into the whole tensor.
    pub(crate) fn put<T: Copy>(&self, whole: &mut [T], region: &Region, part: &[T]) {
        let (width, columns) = (self.columns.unwrap_or(1), &region.columns);
        let rows = region.runs.iter().cloned().flatten();
        for (row, values) in rows.zip(part.chunks_exact(columns.len())) {
            if self.transposed {
                for (column, value) in columns.clone().zip(values) {
                    whole[column * self.rows + row] = *value;
                }
            } else {
                whole[row * width..][columns.clone()].copy_from_slice(values);
            }
        }
    }

    /// Fills one rank's part from the stored tensor, at most `block` elements (but at least one
    /// stored row) at a time. `read` fills a slice from an element of the tensor on.
    pub(crate) fn get<T: Copy, E>(
        &self,
        region: &Region,
        part: &mut [T],
        blank: T,
        block: usize,
        mut read: impl FnMut(usize, &mut [T]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut filled = 0;
        for run in &region.runs {
            let len = run.len() * region.columns.len();
            let part = &mut part[filled..filled + len];
            self.get_run(run.clone(), region.columns.clone(), part, blank, block, &mut read)?;
            filled += len;
        }
        Ok(())
    }

    /// [`Tensor::get`] of one run of rows.
    fn get_run<T: Copy, E>(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        part: &mut [T],
        blank: T,
        block: usize,
        read: &mut impl FnMut(usize, &mut [T]) -> Result<(), E>,
    ) -> Result<(), E> {
        let width = columns.len();
        if width == 0 {
            return Ok(());
        }
        let (outer, inner, stride) = if self.transposed {
            (columns, rows, self.rows)
        } else {
            (rows, columns, self.columns.unwrap_or(1))
        };
        let step = (block / stride).max(1);
        let mut lines = Vec::new();
        for first in outer.clone().step_by(step) {
            let last = (first + step).min(outer.end) - 1;
            // From the first wanted element of the first line to the last one of the last.
            lines.resize((last - first) * stride + inner.len(), blank);
            read(first * stride + inner.start, &mut lines)?;
            for (line, at) in (first - outer.start..).take(last - first + 1).zip(0..) {
                let values = &lines[at * stride..][..inner.len()];
                if self.transposed {
                    for (row, value) in values.iter().enumerate() {
                        part[row * width + line] = *value;
                    }
                } else {
                    part[line * width..][..width].copy_from_slice(values);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use trine_spec::presets;

    #[test]
    fn the_table_holds_each_unique_unpadded_parameter_once() {
        for name in ["gpt2-124m", "llama3-8b", "frontier-22b"] {
            let model = presets::find(name).unwrap().model;
            assert_eq!(
                Table::new(&model.parts(1).unwrap()).len() as u64,
                model.param_count(),
                "{name}"
            );
        }
    }

    proptest! {
        #[test]
        fn parts_come_back_from_where_they_were_put(
            run in 1usize..4, pieces in 1usize..4, columns in 1usize..9, transposed: bool,
            block in 1usize..40, cut_row in 0usize..9, cut_column in 0usize..9,
        ) {
            // Two parameters, whose pieces alternate.
            let (each, rows) = (run * pieces, 2 * run * pieces);
            let tensor = Tensor {
                name: String::new(), rows, columns: Some(columns), transposed, start: 0,
            };
            let (cut_row, cut_column) = (cut_row.min(each), cut_column.min(columns));
            let mut whole = vec![0u32; rows * columns];
            let mut parts = Vec::new();
            for (first, stride) in [(0, 2 * run), (run, 2 * run)] {
                let home = Home { tensor: 0, first, rows: each, run, stride };
                for rows in [0..cut_row, cut_row..each] {
                    for columns in [0..cut_column, cut_column..columns] {
                        if columns.is_empty() {
                            continue;
                        }
                        let (runs, columns) = (home.runs(rows.clone()), columns.clone());
                        let region = Region { tensor: 0, runs, columns: columns.clone() };
                        let value = |r: usize, c: usize| (1000 * (first * 100 + r) + c + 1) as u32;
                        let part: Vec<u32> = rows.clone()
                            .flat_map(|r| columns.clone().map(move |c| value(r, c))).collect();
                        prop_assert_eq!(region.len(), part.len());
                        tensor.put(&mut whole, &region, &part);
                        parts.push((region, part));
                    }
                }
            }
            prop_assert!(whole.iter().all(|value| *value > 0), "all elements are put");
            for (region, part) in parts {
                let mut back = vec![0; part.len()];
                tensor.get(&region, &mut back, 0, block, |from, out| {
                    out.copy_from_slice(&whole[from..][..out.len()]);
                    Ok::<_, ()>(())
                }).unwrap();
                prop_assert_eq!(back, part);
            }
            let at = if transposed { (columns - 1) * rows } else { columns - 1 };
            prop_assert_eq!(whole[at], columns as u32, "the last column of row 0");
            let second = if transposed { run } else { run * columns };
            prop_assert_eq!(whole[second], 100_000 * run as u32 + 1, "row 0 of the second");
        }
    }
}
