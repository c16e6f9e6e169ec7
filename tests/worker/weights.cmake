polyreme_test(worker_weights_test
  SOURCES safetensors_test.cc checkpoint_test.cc truncation_test.cc checkpoint_builder.cc
  DEPS polyreme_weights
  LABELS memory)
polyreme_test(worker_dummy_test
  SOURCES dummy_test.cc checkpoint_builder.cc model_harness.cc staged_communicator.cc
  DEPS polyreme_model polyreme_backend)
# Whatever opens, examines, reads or maps a file in here goes through the test first.
polyreme_test(worker_disk_faults_test
  SOURCES disk_faults_test.cc
  DEPS polyreme_weights polyreme_text)
target_link_options(worker_disk_faults_test PRIVATE
  -Wl,--wrap=open -Wl,--wrap=fstat -Wl,--wrap=read -Wl,--wrap=mmap)
