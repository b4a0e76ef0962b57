//! Which algorithm, with its constants.

use crate::OptimError;
use serde::{Deserialize, Serialize};

/// An optimization algorithm and its constants. The learning rate is not one of them: it comes
/// with each step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Adam with decoupled weight decay (Loshchilov & Hutter, 1711.05101) and bias correction.
    AdamW {
        /// Decay of the first moment, in `0..1`.
        beta1: f64,
        /// Decay of the second moment, in `0..1`.
        beta2: f64,
        /// Added to the root of the second moment; positive.
        eps: f64,
        /// Decoupled decay of the parameters that decay; not negative.
        weight_decay: f64,
    },
    /// Gradient descent with momentum: `v = momentum · v + g + weight_decay · w`, `w −= lr · v`.
    Sgd {
        /// Decay of the velocity, in `0..1`; with 0 no velocity is kept.
        momentum: f64,
        /// Decay of the parameters that decay, added to the gradient; not negative.
        weight_decay: f64,
    },
}

impl OptimizerConfig {
    /// The names of the moments that are kept for each owned element, as PyTorch calls them.
    pub fn moments(&self) -> &'static [&'static str] {
        match self {
            Self::AdamW { .. } => &["exp_avg", "exp_avg_sq"],
            Self::Sgd { momentum, .. } if *momentum == 0.0 => &[],
            Self::Sgd { .. } => &["momentum_buffer"],
        }
    }

    /// Decay of the parameters that decay.
    pub fn weight_decay(&self) -> f64 {
        match self {
            Self::AdamW { weight_decay, .. } | Self::Sgd { weight_decay, .. } => *weight_decay,
        }
    }

    /// Checks the constants.
    ///
    /// # Errors
    /// The first that is out of its range, with the nearest valid value.
    pub fn check(&self) -> Result<(), OptimError> {
        match *self {
            Self::AdamW { beta1, beta2, eps, weight_decay } => {
                check_decay_rate("optimizer.beta1", beta1)?;
                check_decay_rate("optimizer.beta2", beta2)?;
                if !(eps > 0.0 && eps.is_finite()) {
                    let (field, rule) = ("optimizer.eps", "it must be positive and finite");
                    return Err(OptimError::Field { field, value: eps, rule, nearest: 1e-8 });
                }
                check_weight_decay(weight_decay)
            }
            Self::Sgd { momentum, weight_decay } => {
                check_decay_rate("optimizer.momentum", momentum)?;
                check_weight_decay(weight_decay)
            }
        }
    }
}

fn check_decay_rate(field: &'static str, value: f64) -> Result<(), OptimError> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    let nearest = if value >= 1.0 { 0.999 } else { 0.0 };
    let rule = "it must be at least 0 and below 1";
    Err(OptimError::Field { field, value, rule, nearest })
}

fn check_weight_decay(value: f64) -> Result<(), OptimError> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    let (field, rule) = ("optimizer.weight_decay", "it must be at least 0 and finite");
    Err(OptimError::Field { field, value, rule, nearest: 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_out_of_range_name_the_field_and_the_nearest_value() {
        let adamw = |beta1, beta2, eps, weight_decay| OptimizerConfig::AdamW {
            beta1,
            beta2,
            eps,
            weight_decay,
        };
        let sgd = |momentum, weight_decay| OptimizerConfig::Sgd { momentum, weight_decay };
        let bad = [
            (adamw(1.0, 0.95, 1e-8, 0.1), "optimizer.beta1 = 1", "0.999"),
            (adamw(0.9, -0.1, 1e-8, 0.1), "optimizer.beta2 = -0.1", "0"),
            (adamw(0.9, 0.95, 0.0, 0.1), "optimizer.eps = 0", "0.00000001"),
            (adamw(0.9, 0.95, 1e-8, f64::NAN), "optimizer.weight_decay = NaN", "0"),
            (sgd(f64::NAN, 0.0), "optimizer.momentum = NaN", "0"),
            (sgd(0.9, -1.0), "optimizer.weight_decay = -1", "0"),
        ];
        for (config, field, nearest) in &bad {
            let text = config.check().unwrap_err().to_string();
            assert!(text.starts_with(field), "{text}");
            assert!(text.ends_with(&format!("nearest valid value: {nearest}")), "{text}");
        }
        assert_eq!(bad.len(), 6);
        assert!(adamw(0.9, 0.95, 1e-8, 0.1).check().is_ok() && sgd(0.0, 0.0).check().is_ok());
    }

    #[test]
    fn the_configuration_has_a_stable_form_and_refuses_unknown_fields() {
        let config = OptimizerConfig::Sgd { momentum: 0.9, weight_decay: 0.0 };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(text, r#"{"kind":"sgd","momentum":0.9,"weight_decay":0.0}"#);
        assert_eq!(serde_json::from_str::<OptimizerConfig>(&text).unwrap(), config);
        let unknown = r#"{"kind":"sgd","momentum":0.9,"weight_decay":0.0,"beta1":0.9}"#;
        let error = serde_json::from_str::<OptimizerConfig>(unknown).unwrap_err();
        assert!(error.to_string().contains("beta1"), "{error}");
    }
}
