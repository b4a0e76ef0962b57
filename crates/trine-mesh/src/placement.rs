//! Which process becomes which rank, from the hosts that they are on.

use crate::{Axis, Mesh, MeshError};

/// Processes in the order of a mesh's ranks: hosts in turn, so that ranks which differ on the fastest
/// axes only, the tensor-parallel ones, share a host, and the slowest axis, the pipeline, crosses
/// hosts.
///
/// ```
/// use trine_mesh::{Degrees, Mesh, Placement};
///
/// let mesh = Mesh::new(Degrees { pp: 2, tp: 2, ..Degrees::SERIAL }, 4)?;
/// // A launcher that deals processes out to hosts in turn.
/// let placement = Placement::new(&mesh, &["a", "b", "a", "b"])?;
/// assert_eq!(placement.order(), [0, 2, 1, 3]);
/// assert_eq!(placement.hosts(), ["a", "a", "b", "b"]);
/// # Ok::<(), trine_mesh::MeshError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    order: Vec<usize>,
    hosts: Vec<String>,
}

impl Placement {
    /// Places processes, of which each says the name of its host, in the order of their numbers.
    ///
    /// # Errors
    /// A number of processes that is not the mesh's, or hosts that would cut a tensor-parallel group
    /// in two.
    pub fn new<T: AsRef<str>>(mesh: &Mesh, hosts: &[T]) -> Result<Self, MeshError> {
        Mesh::new(mesh.degrees(), hosts.len())?;
        let name = |process: usize| hosts[process].as_ref();
        let first = |process: usize| {
            (0..hosts.len()).find(|other| name(*other) == name(process)).unwrap_or(process)
        };
        let mut order: Vec<usize> = (0..hosts.len()).collect();
        order.sort_by_key(|process| (first(*process), *process));
        let hosts: Vec<String> = order.iter().map(|process| name(*process).to_owned()).collect();
        let tp = mesh.degrees().of(Axis::Tp);
        if let Some(group) = hosts.chunks(tp).find(|group| group.iter().any(|h| *h != group[0])) {
            let crossing = group.iter().find(|host| **host != group[0]);
            return Err(MeshError::CrossesHosts {
                tp,
                first: group[0].clone(),
                second: crossing.cloned().unwrap_or_default(),
                nearest: nearest(tp, &hosts),
            });
        }
        Ok(Self { order, hosts })
    }

    /// The process that becomes rank i of the mesh, for every i.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The host of every rank of the mesh.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }
}

/// The greatest degree up to `tp` that divides the number of ranks on every host.
fn nearest(tp: usize, hosts: &[String]) -> usize {
    let runs = || hosts.chunk_by(|one, other| one == other);
    let fits = |degree: &usize| runs().all(|run| run.len().is_multiple_of(*degree));
    (1..=tp).rev().find(fits).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Degrees;

    fn mesh(dp: usize, pp: usize, tp: usize) -> Mesh {
        Mesh::new(Degrees { dp, pp, tp, ..Degrees::SERIAL }, dp * pp * tp).unwrap()
    }

    #[test]
    fn tensor_groups_share_a_host_and_the_pipeline_crosses_hosts() {
        let mesh = mesh(2, 2, 2);
        for hosts in
            [["a", "a", "a", "a", "b", "b", "b", "b"], ["a", "b", "a", "b", "a", "b", "a", "b"]]
        {
            let placement = Placement::new(&mesh, &hosts).unwrap();
            let mut seen = placement.order().to_vec();
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7]);
            for (rank, process) in placement.order().iter().enumerate() {
                assert_eq!(placement.hosts()[rank], hosts[*process]);
                let at = mesh.coordinate(rank);
                // Each of the two stages has a host of its own.
                assert_eq!(placement.hosts()[rank], ["a", "b"][at.pp]);
            }
        }
    }

    #[test]
    fn a_group_that_crosses_hosts_is_refused_with_a_degree_that_does_not() {
        let error = Placement::new(&mesh(2, 1, 4), &["a", "a", "a", "a", "a", "a", "b", "b"]);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("tp 4") && text.contains("a and b"), "{text}");
        assert!(text.contains("nearest valid value: layout.tp = 2"), "{text}");
    }

    #[test]
    fn another_number_of_processes_is_refused() {
        assert!(Placement::new(&mesh(2, 2, 2), &["a", "b"]).is_err());
    }
}
