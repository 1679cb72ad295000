"""The names that other programs give to flags, and the flag that means the same here."""

import difflib

# {name elsewhere: names here, the best one first}. A script takes the first one that it has.
SYNONYMS = {
    "steps": "epochs epoch num_epochs num_train_epochs max_steps num_steps total_steps iterations",
    "lr": "learning_rate lr_rate",
    "prompts batch": "batch_size train_batch_size per_device_train_batch_size bs "
    "per_device_eval_batch_size eval_batch_size",
    "micro_tokens": "gradient_accumulation_steps grad_accum micro_batch_size mini_batch_size",
    "samples n": "num_generations num_samples rollouts n_samples group_size num_return_sequences",
    "max_new_tokens": "max_length max_tokens max_completion_length max_seq_len max_seq_length",
    "student model": "model model_name model_name_or_path model_path base_model pretrained",
    "teacher": "teacher_model teacher_model_name_or_path teacher_name teacher_path",
    "data benchmark": "dataset dataset_name train_file train_data train_dataset data_path",
    "benchmark data": "eval_dataset test_file test_data eval_data tasks task val_file",
    "eval_n limit": "eval_size num_eval max_eval_samples max_samples",
    "eval_every": "eval_steps eval_interval evaluation_steps",
    "save_every": "save_steps save_interval checkpoint_every",
    "show_every": "logging_steps log_every log_interval print_every",
    "out html": "output_dir output out_dir save_dir output_path logging_dir run_dir",
    "resume": "resume_from_checkpoint continue restart",
    "dtype": "bf16 fp16 torch_dtype precision mixed_precision half",
    "device": "cpu gpu cuda no_cuda use_cpu device_map",
    "lora": "lora_r lora_rank use_lora use_peft peft",
    "adam_bits": "optim optimizer",
    "sampler": "use_vllm vllm",
    "vllm_memory": "gpu_memory_utilization vllm_gpu_memory_utilization",
    "beta": "kl_coef kl_beta kl_coeff kl_weight",
    "temperature": "temp",
    "seed": "random_seed manual_seed",
    "out": "name run_name exp_name experiment",
}
# What else a user must know, because the flag is not quite the same.
NOTES = {
    "--steps": "a run is measured in updates, of --prompts problems each",
    "--prompts": "a batch is --prompts x --samples rollouts",
    "--max_new_tokens": "it counts the response without its prompt",
    "--beta": "in opd.py it belongs to --divergence jsd, elsewhere it weighs the KL to the start",
    "--micro_tokens": "a batch is cut into micro-batches by their tokens; the result is the same",
}


def meant(unknown, flags):
    """What a user meant by an unknown flag, as the end of a sentence; "" if nobody can know.

    unknown: "--learning_rate".  flags: the flags that the script has, {"--lr", ...}.
    """
    name = unknown.removeprefix("--").replace("-", "_").lower()
    for here, elsewhere in SYNONYMS.items():
        flag = next((f"--{f}" for f in here.split() if f"--{f}" in flags), None)
        if flag and name in elsewhere.split():
            note = f" ({NOTES[flag]})" if flag in NOTES else ""
            return f"did you mean {flag}?{note}"
    near = difflib.get_close_matches(f"--{name}", flags, 1)
    return f"did you mean {near[0]}?" if near else ""
