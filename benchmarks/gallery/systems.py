"""The table of systems: where each is, which test verifies it, which part of the gallery measures and shows it."""

from __future__ import annotations

from typing import NamedTuple

S, P, T = "scoreinv/sampling/", "scoreinv/priors/", "tests/"


class System(NamedTuple):
    """A row of the table.

    Attributes:
        name: under which its part gives a figure.
        file: where it is, from the repository's root.
        test: file::function.
        part: of the gallery.
        picture: its PNG without suffix.
    """

    name: str
    file: str
    test: str
    part: str
    picture: str


GROUPS: dict[str, tuple[System, ...]] = {
    "Forward processes": (
        System("VE SDE", S + "processes.py", T + "test_processes.py::test_kernels_solve_the_moment_equations", "processes", "processes"),
        System("VP SDE", S + "processes.py", T + "test_processes.py::test_kernels_solve_the_moment_equations", "processes", "processes"),
        System("sub-VP SDE", S + "processes.py", T + "test_processes.py::test_kernels_solve_the_moment_equations", "processes", "processes"),
        System("DDPM chains", S + "discrete.py", T + "test_processes.py::test_a_chain_goes_by_its_betas", "processes", "levels"),
        System("EDM levels", S + "levels.py", T + "test_sampling.py::test_karras_values", "processes", "levels"),
        System("flow matching", S + "processes.py", T + "test_samplers.py::test_flow_matching_steps_are_those_of_its_velocity", "processes", "processes"),
        System("conversions", P + "adapters/parametrisation.py", T + "test_processes.py::test_conversions", "processes", "levels"),
    ),
    "Losses": (
        System("implicit (Hyvärinen)", P + "losses/score_matching.py", T + "test_losses.py::test_the_true_score_of_a_gaussian_minimises", "plane_losses", "plane_losses"),
        System("sliced, Gaussian", P + "losses/score_matching.py", T + "test_losses.py::test_sliced_is_implicit_on_average_and_less_noisy_with_its_variance_reduced", "plane_losses", "plane_losses"),
        System("sliced, random signs", P + "losses/score_matching.py", T + "test_losses.py::test_sliced_is_implicit_on_average_and_less_noisy_with_its_variance_reduced", "plane_losses", "plane_losses"),
        System("sliced, variance-reduced", P + "losses/score_matching.py", T + "test_losses.py::test_sliced_is_implicit_on_average_and_less_noisy_with_its_variance_reduced", "plane_losses", "plane_losses"),
        System("denoising, one level", P + "losses/denoising.py", T + "test_losses.py::test_denoising_is_minimal_at_the_score_of_the_noisy_images", "plane_losses", "plane_losses"),
        System("denoising, many levels", P + "losses/denoising.py", T + "test_losses.py::test_noise_conditional_is_minimal_at_every_level", "plane_losses", "plane_losses"),
        System("energy-based", P + "losses/score_matching.py", T + "test_losses.py::test_a_network_of_energies_learns_from_every_loss", "plane_losses", "plane_losses"),
    ),
    "Models of digits": (
        System("digits: NCSNv2", S + "ncsn.py", T + "test_langevin.py::test_published_figures_of_ncsnv2", "digits_models", "digits_models"),
        System("digits: DDPM, L_simple", P + "losses/ddpm.py", T + "test_losses.py::test_simple_is_minimal_at_the_mean_of_the_noise", "digits_models", "digits_models"),
        System("digits: improved DDPM, hybrid", P + "losses/ddpm.py", T + "test_losses.py::test_learned_variance_finds_the_right_one", "digits_models", "digits_models"),
        System("digits: VE SDE", P + "losses/denoising.py", T + "test_losses.py::test_weights_times_density_do_not_depend_on_the_times", "digits_models", "digits_models"),
        System("digits: VP SDE", P + "losses/denoising.py", T + "test_losses.py::test_weights_times_density_do_not_depend_on_the_times", "digits_models", "digits_models"),
        System("digits: VP SDE, likelihood weighting", P + "losses/denoising.py", T + "test_losses.py::test_likelihood_weighting_measures_the_divergence_of_two_laws", "digits_models", "digits_models"),
        System("digits: sub-VP SDE", P + "losses/denoising.py", T + "test_losses.py::test_likelihood_times_follow_their_density", "digits_models", "digits_models"),
        System("digits: flow matching", S + "processes.py", T + "test_samplers.py::test_flow_matching_steps_are_those_of_its_velocity", "digits_models", "digits_models"),
        System("digits: EDM", P + "training.py", T + "test_training.py::test_loss_of_a_linear_denoiser_of_gaussian_images", "digits_models", "digits_models"),
    ),
    "Samplers": (
        System("Langevin", S + "langevin.py", T + "test_langevin.py::test_unadjusted_steps_go_to_the_law_that_the_head_states", "plane_langevin", "plane_langevin"),
        System("MALA", S + "langevin.py", T + "test_langevin.py::test_proposals_are_accepted_as_often_as_they_should_be", "plane_langevin", "plane_langevin"),
        System("annealed Langevin", S + "langevin.py", T + "test_langevin.py::test_annealed_langevin_is_its_algorithm", "plane_langevin", "plane_langevin"),
        System("Euler-Maruyama", S + "reverse_sde.py", T + "test_samplers.py::test_euler_maruyama", "digits_samplers", "digits_samplers"),
        System("reverse diffusion", S + "reverse_sde.py", T + "test_samplers.py::test_reverse_diffusion_of_a_chain", "digits_samplers", "digits_samplers"),
        System("ancestral, small variance", S + "steps.py", T + "test_samplers.py::test_ddpm", "digits_samplers", "digits_samplers"),
        System("ancestral, large variance", S + "ddpm.py", T + "test_samplers.py::test_large_variance_is_exact_for_standard_normal_images", "digits_samplers", "digits_samplers"),
        System("ancestral, learned variance", S + "ddpm.py", T + "test_samplers.py::test_learned_variance_of_a_network", "digits_samplers", "digits_samplers"),
        System("predictor-corrector", S + "steps.py", T + "test_sampling.py::test_predictor_corrector_order", "digits_samplers", "digits_samplers"),
        System("DDIM, η = 0", S + "steps.py", T + "test_samplers.py::test_ddim", "digits_samplers", "digits_samplers"),
        System("DDIM, η = 0.5", S + "steps.py", T + "test_samplers.py::test_ddim", "digits_samplers", "digits_samplers"),
        System("PNDM", S + "pndm.py", T + "test_samplers.py::test_order_of_pndm", "digits_samplers", "digits_samplers"),
        System("DPM-Solver++(2M)", S + "steps.py", T + "test_schedulers.py::test_schedulers_in_vp", "digits_samplers", "digits_samplers"),
        System("Heun (EDM)", S + "steps.py", T + "test_sampling.py::test_order_of_convergence", "digits_samplers", "digits_samplers"),
        System("Heun with churn", S + "steps.py", T + "test_samplers.py::test_churn_is_algorithm_2_of_edm", "digits_samplers", "digits_samplers"),
        System("probability-flow ODE (Runge-Kutta)", S + "flow_ode.py", T + "test_flow_ode.py::test_decoded_noise_has_the_law_of_the_prior", "digits_samplers", "digits_draws"),
        System("orders of the solvers", S + "steps.py", T + "test_sampling.py::test_order_of_convergence", "plane_flow", "orders"),
        System("encoding and decoding", S + "flow_ode.py", T + "test_flow_ode.py::test_images_come_back_from_their_latents", "plane_flow", "plane_flow"),
        System("identifiable encoding", S + "flow_ode.py", T + "test_flow_ode.py::test_latents_do_not_depend_on_process_and_network", "plane_flow", "plane_flow"),
        System("latents of images", S + "flow_ode.py", T + "test_flow_ode.py::test_images_come_back_from_their_latents", "digits_flow", "digits_flow"),
        System("identifiable encoding of images", S + "flow_ode.py", T + "test_flow_ode.py::test_latents_do_not_depend_on_process_and_network", "digits_flow", "digits_flow"),
        System("interpolation", S + "flow_ode.py", T + "test_flow_ode.py::test_interpolation_begins_and_ends_with_the_images", "digits_flow", "digits_flow"),
    ),
    "Likelihood": (
        System("likelihood by the flow", S + "likelihood.py", T + "test_likelihood.py::test_exact_trace_gives_the_exact_density", "plane_flow", "plane_flow"),
        System("bits per dimension by the flow", S + "likelihood.py", T + "test_likelihood.py::test_dequantised_bits_bound_those_of_the_probability", "digits_models", "digits_models"),
        System("discrete bound of DDPM", P + "losses/ddpm.py", T + "test_losses.py::test_the_bound_lies_above_the_likelihood_and_meets_it", "digits_models", "digits_models"),
        System("anomaly score", "scoreinv/image_score.py", T + "test_image_score.py::test_the_oddities_raise_both_scores_of_an_exact_prior", "ct_prior", "ct_score"),
        System("generative classification", S + "classification.py", T + "test_guided.py::test_generative_classification_is_bayes_rule", "digits_classes", "digits_classes"),
    ),
    "Conditional models": (
        System("class-conditional network", P + "conditional.py", T + "test_digits.py::test_draws_have_the_class_that_was_asked_for", "digits_classes", "digits_classes"),
        System("classifier guidance, algorithm 1", S + "guided.py", T + "test_guided.py::test_algorithm_1_as_in_the_paper", "digits_classes", "digits_guidance"),
        System("classifier guidance, algorithm 2", S + "guided.py", T + "test_guided.py::test_algorithm_2_as_in_the_paper", "digits_classes", "digits_guidance"),
        System("classifier-free guidance", S + "guided.py", T + "test_guided.py::test_both_guidances_have_the_score_of_the_tilted_law", "digits_classes", "digits_guidance"),
        System("cross-attention", P + "transformer.py", T + "test_transformer.py::test_against_torch_attention", "digits_words", "digits_words"),
        System("paired training", "scoreinv/baselines/learned_conditional.py", T + "test_conditional_score.py::test_with_the_exact_network_it_draws_from_the_posterior", "ct_pairs", "ct_pairs"),
    ),
    "Latent diffusion": (
        System("prior of CT slices", P + "training.py", T + "test_training.py::test_loss_of_a_linear_denoiser_of_gaussian_images", "ct_prior", "ct_prior"),
        System("KL autoencoder", P + "autoencoder.py", T + "test_autoencoder.py::test_a_trained_linear_autoencoder_is_probabilistic_pca", "ct_latent", "ct_latent"),
        System("latent diffusion", P + "latent.py", T + "test_latent_prior.py::test_images_of_a_latent_prior_are_decoded_draws", "ct_latent", "ct_latent"),
        System("latent posterior sampling", "scoreinv/posterior/latent_daps.py", T + "test_latent_daps.py::test_white_latents_and_a_linear_decoder_are_exact", "ct_latent", "ct_latent"),
    ),
    "Controllable generation": (
        System("inpainting", "scoreinv/editing.py", T + "test_editing.py::test_inpainting_by_the_exact_method_gives_the_exact_posterior", "ct_editing", "ct_editing"),
        System("stroke-to-image (SDEdit)", S + "sdedit.py", T + "test_editing.py::test_sdedit_draws_what_its_head_says", "ct_editing", "ct_editing"),
        System("colourisation", "scoreinv/editing.py", T + "test_editing.py::test_colourisation_by_the_exact_method_gives_the_exact_posterior", "colours", "colours"),
    ),
}  # fmt: skip
SYSTEMS = [system for group in GROUPS.values() for system in group]
