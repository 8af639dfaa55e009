// Runs a SavedModel by TensorFlow's C API: client FOLDER INPUT_OP OUTPUT_OP INPUT_FILE OUTPUT_FILE ROWS COLUMNS.
// The files hold float32 values, row by row. Exit status 1 if anything fails.
#include <stdio.h>
#include <stdlib.h>

#include "tensorflow/c/c_api.h"

static void check(TF_Status* status, const char* what) {
  if (TF_GetCode(status) != TF_OK) {
    fprintf(stderr, "%s: %s\n", what, TF_Message(status));
    exit(1);
  }
}

int main(int count, char** words) {
  if (count != 8) return 1;
  int64_t shape[2] = {atoll(words[6]), atoll(words[7])};
  size_t bytes = shape[0] * shape[1] * sizeof(float);
  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tags = "serve";
  TF_Session* session = TF_LoadSessionFromSavedModel(options, NULL, words[1], &tags, 1, graph, NULL, status);
  check(status, "load");
  TF_Tensor* given = TF_AllocateTensor(TF_FLOAT, shape, 2, bytes);
  FILE* file = fopen(words[4], "rb");
  if (!file || fread(TF_TensorData(given), 1, bytes, file) != bytes) return 1;
  fclose(file);
  TF_Output input = {TF_GraphOperationByName(graph, words[2]), 0};
  TF_Output output = {TF_GraphOperationByName(graph, words[3]), 0};
  if (!input.oper || !output.oper) return 1;
  TF_Tensor* made = NULL;
  TF_SessionRun(session, NULL, &input, &given, 1, &output, &made, 1, NULL, 0, NULL, status);
  check(status, "run");
  file = fopen(words[5], "wb");
  size_t size = TF_TensorByteSize(made);
  if (!file || fwrite(TF_TensorData(made), 1, size, file) != size) return 1;
  return fclose(file) != 0;
}
