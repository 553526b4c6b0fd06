"""tools/check_includes.py passes a good tree and fails on each planted violation."""
# SPDX-License-Identifier: Apache-2.0
import unittest

from tree import TreeTest


class CheckIncludes(TreeTest):
    CHECKER = "check_includes.py"

    def setUp(self):
        super().setUp()
        self.write("src/core/tensor.h", "#include <vector>\n")
        self.write("src/ops/norm.h", '#include "core/tensor.h"\n')
        self.write("src/ops/norm.cc", '#include "ops/norm.h"\n\n#include <cmath>\n')
        self.write("src/ops/cpu/rows.h", '#include "core/tensor.h"\n')
        self.write("src/ops/cpu/norm.cc", '#include "ops/norm.h"\n#include "ops/cpu/rows.h"\n')
        self.write("src/ops/cuda/norm/launch.cu",
                   '#include <cuda_runtime.h>\n#include "ops/norm.h"\n')
        self.write("src/model/config.h", '#include <string>\n')
        self.write("src/model/params.h", '#include "core/tensor.h"\n#include "model/config.h"\n')
        self.write("src/model/mla.h", '#include "model/params.h"\n#include "ops/norm.h"\n')
        self.write("src/io/hf.h", '#include "model/params.h"\n#include <nlohmann/json.hpp>\n')
        self.write("src/train/loop.h", '#include "io/hf.h"\n#include "model/mla.h"\n')
        self.write("src/serve/engine.h", '#include "model/mla.h"\n')
        self.write("src/cli/main.cc", '#include "train/loop.h"\n#include <CLI/CLI.hpp>\n')
        self.write("tests/help.h", '#include "src/core/tensor.h"\n')
        self.write("tests/unit/a_test.cc", '#include "ops/cpu/rows.h"\n#include "tests/help.h"\n')

    def test_good_tree(self):
        self.expect()

    def plant(self, name, include, *messages):
        self.write(name, f"// planted\n#include {include}\n")
        self.expect(*(f"{name}:2: {message}" for message in messages))

    def test_upward(self):
        self.plant("src/core/bad.h", '"ops/norm.h"', "core may not include ops/norm.h")

    def test_ops_to_model(self):
        self.plant("src/ops/bad.h", '"model/config.h"', "ops may not include model/config.h")

    def test_model_to_io(self):
        self.plant("src/model/bad.cc", '"io/hf.h"', "model may not include io/hf.h")

    def test_io_to_ops(self):
        self.plant("src/io/bad.h", '"ops/norm.h"', "io may not include ops/norm.h")

    def test_io_to_the_rest_of_model(self):
        self.plant("src/io/bad.h", '"model/mla.h"', "io may not include model/mla.h")

    def test_train_to_serve(self):
        self.plant("src/train/bad.h", '"serve/engine.h"', "train may not include serve/engine.h")

    def test_serve_to_train(self):
        self.plant("src/serve/bad.h", '"train/loop.h"', "serve may not include train/loop.h")

    def test_nobody_includes_cli(self):
        self.write("src/cli/options.h", "")
        self.plant("src/train/bad.h", '"cli/options.h"', "train may not include cli/options.h")

    def test_nobody_includes_tests(self):
        self.plant("src/model/bad.h", '"tests/help.h"', "tests/help.h is not in a layer of src/")

    def test_pure_header(self):
        self.plant("src/model/config.h", '"ops/norm.h"',
                   "model/config.h is pure: it may include core and pure headers only, not "
                   "ops/norm.h")

    def test_pure_header_to_its_own_layer(self):
        self.plant("src/model/bytes.h", '"model/mla.h"',
                   "model/bytes.h is pure: it may include core and pure headers only, not "
                   "model/mla.h")

    def test_source_of_a_pure_header(self):
        self.write("src/model/config.cc", '#include "model/config.h"\n#include "ops/norm.h"\n')
        self.expect("src/model/config.cc:2: model/config.h is pure: it may include core and pure "
                    "headers only, not ops/norm.h")

    def test_pure_header_to_itself_is_fine(self):
        self.write("src/model/config.cc", '#include "model/config.h"\n#include "core/tensor.h"\n')
        self.expect()

    def test_body_from_model(self):
        self.plant("src/model/bad.cc", '"ops/cpu/rows.h"',
                   "ops/cpu/rows.h is a body of ops: include the op's own header")

    def test_body_from_the_other_body(self):
        self.plant("src/ops/cuda/bad.cu", '"ops/cpu/rows.h"',
                   "ops/cpu/rows.h is a body of ops: include the op's own header")

    def test_cuda_outside_its_files(self):
        self.plant("src/model/bad.cc", "<cuda_runtime.h>",
                   "model may not use CUDA: <cuda_runtime.h>")

    def test_cuda_in_core(self):
        self.write("src/core/device_cuda.cc", "#include <cuda_runtime.h>\n")
        self.expect()
        self.plant("src/core/bad.cc", "<cuda.h>", "core may not use CUDA: <cuda.h>")

    def test_json_in_model(self):
        self.plant("src/model/bad.h", "<nlohmann/json.hpp>",
                   "model may not use JSON: <nlohmann/json.hpp>")

    def test_files_in_model(self):
        self.plant("src/model/bad.cc", "<fstream>", "model may not use file access: <fstream>")

    def test_relative_path(self):
        self.plant("src/ops/bad.cc", '"../core/tensor.h"',
                   "../core/tensor.h must be a path from src/")

    def test_relative_path_in_tests(self):
        self.plant("tests/unit/bad.cc", '"../help.h"',
                   "../help.h must be a path from src/ or the repository")

    def test_file_that_does_not_exist(self):
        self.plant("src/ops/bad.cc", '"ops/absent.h"', "there is no src/ops/absent.h")

    def test_own_header_is_not_first(self):
        self.write("src/ops/norm.cc", '#include <cmath>\n\n#include "ops/norm.h"\n')
        self.expect("src/ops/norm.cc:1: the first include must be ops/norm.h")

    def test_unknown_layer(self):
        self.write("src/misc/a.h", "")
        self.expect("src/misc/a.h:1: misc is not a layer; known: core, ops, model, io, parallel, "
                    "train, serve, eval, server, plan, cli")


if __name__ == "__main__":
    unittest.main()
