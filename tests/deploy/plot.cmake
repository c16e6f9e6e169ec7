polyreme_test(deploy_plot_test SOURCES plot_test.cc DEPS polyreme_plot)
