"""What the laws together answer to each of the three questions; a law's name in brackets stands for the law and its verdict."""

ANSWERS = {
    "circuits": (
        "Because weights are multiplied with each other, and because what the data repeats is not a function of any one of them. Where a skill needs two "
        "parts, the gradient of each is proportional to the other: for a long time next to nothing, then both at once, and as pieces with a job each rather "
        "than spread over everything. [linear-attention] says it exactly: heads that learn to regress in context come one by one, each along one direction "
        "of the data, at losses that follow from the data's covariance alone. [induction] says it for copying: a previous-token head and a matching head "
        "above it appear together, in models of two layers and not of one, and only where the task cannot be done by position. [grokking] shows which "
        "features: the waves of the task's own symmetry, one frequency a unit, since units of different frequencies do not meet in the loss; decay then "
        "removes what was merely remembered. [fact] says which features are left in any layer when training rests: the input directions whose product with "
        "the loss's own gradient still adds up, no others. [superposition] says how many: features that are seldom present together share directions, so a "
        "narrow layer keeps more of them than it has dimensions, each readable apart from the others, in an arrangement known beforehand. And "
        "[kernel-regime] says when none of this happens: where the outputs move far before the features do, training is linear, and the features stay those "
        "of the start. Composition is what descent does with products of weights outside that regime."
    ),
    "simplicity": (
        "Because descent on products of weights favours few factors, and decay makes that preference a price. Nothing in the loss asks for low rank. But "
        "each mode of a product grows at a rate proportional to itself, so that strong ones outrun weak ones and the model passes through maps of rank 1, "
        "2, 3 on its way ([mode-times]); decay on two factors is a nuclear norm on their product, which removes whole directions below a threshold "
        "([nuclear-norm]); and the balance between factors is kept by every step, up to the decay that removes it ([noether], exactly, in whole "
        "transformers). What pulls is of low rank to begin with: a loss over C classes is steep along C − 1 directions ([hessian-outliers]), features of "
        "classes end in as many ([neural-collapse]), the first step of LoRA is the gradient seen through its random matrix ([lora-first-order]), and what a "
        "fine-tune adds to a matrix has about the rank of its first normalised gradient ([update-rank]). Solutions of low rank are also the roomier ones: "
        "their neighbourhoods hold far more weights that fit ([local-learning-coefficient]). Sparsity is the same economy seen from the features and from "
        "the heads: with more sparse features than dimensions, each keeps a direction of its own as far from the others as geometry allows "
        "([superposition]), and a head that is idle at most tokens parks its attention on the first one because a softmax must put it somewhere ([sinks])."
    ),
    "dynamics": (
        "The update rule alone gives the numbers, before the run. To second order along the optimizer's own update, the next loss is known whatever the "
        "optimizer ([one-step]). Where training comes to rest follows from what the equations cannot see: a row whose length does not matter settles where "
        "the growth by noise and the shrinking by decay cancel, at a length and a turning rate that learning rate, decay and momentum fix "
        "([rotational-equilibrium]). Which solutions can be kept follows from the step size: full-batch descent sharpens until 2/η and stays there "
        "([edge-of-stability]). And where the loss ends follows from the data's statistics: on a Markov chain it comes down to the conditional entropy and "
        "does not stop at the tokens' frequencies ([bigram-floor]). The two answers above are these equations applied to products of weights: symmetries "
        "give what is kept ([noether]), products give what grows first ([mode-times], [linear-attention]), decay gives what is dropped ([nuclear-norm], "
        "[fact])."
    ),
    "use": (
        "How large a batch still pays ([noise-scale]); which learning rates break down ([learning-rate-ceiling]); where an update will live and how large "
        "it is ([update-rank], [lora-first-order]); what each layer is worth to the specialist ([layer-skip]); what a fine-tune costs in general text "
        "([forgetting]); what twice the data would add ([more-data]); whether a light adaptation will do or new features must be made "
        "([light-adaptation]); after how many steps half of what can be learnt is ([steps-to-target]); and, from a run's settings alone, whether weight "
        "decay can do anything in it ([rotational-equilibrium])."
    ),
}
